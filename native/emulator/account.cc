#include "account.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "block.h"

namespace sepconv::emulator {
namespace {

std::map<std::string, Account>& accounts() {
  static std::map<std::string, Account> all;
  return all;
}

// Passes of the lanes that a single pass could serve if their words lay in different banks.
uint64_t passesOf(const std::vector<WarpLog::Access>& lanes) {
  std::map<uint32_t, std::set<uint32_t>> words;  // by bank
  for (const WarpLog::Access& access : lanes)
    for (uint32_t word = access.address / 4; word <= (access.address + static_cast<uint32_t>(access.bytes) - 1) / 4;
         ++word)
      words[word % 32].insert(word);
  size_t most = 1;
  for (const auto& [bank, distinct] : words) most = std::max(most, distinct.size());
  return most;
}

}  // namespace

void WarpLog::flush(Account& account) {
  std::map<std::tuple<const char*, int, int>, int> seen;                         // by place and lane
  std::map<std::tuple<const char*, int, int, int>, std::vector<Access>> passes;  // by instruction and part of the warp
  for (const Access& access : accesses_) {
    const int occurrence = seen[{access.file, access.line, access.lane}]++;
    const int lanes = access.bytes == 16 ? 8 : access.bytes == 8 ? 16 : 32;
    passes[{access.file, access.line, occurrence, access.lane / lanes}].push_back(access);
  }
  for (const auto& [key, lanes] : passes) {
    const uint64_t taken = passesOf(lanes);
    account.sharedPasses += taken;
    account.sharedMinimum += 1;
    if (taken > 1) {
      const char* slash = std::strrchr(lanes[0].file, '/');
      account.conflicts[std::string(slash ? slash + 1 : lanes[0].file) + ":" + std::to_string(lanes[0].line)] +=
          taken - 1;
    }
  }
  accesses_.clear();
}

std::map<std::string, Account> takeAccounts() {
  std::map<std::string, Account> taken;
  taken.swap(accounts());
  return taken;
}

Account& accountOf(const char* launch) { return accounts()[launch]; }

}  // namespace sepconv::emulator
