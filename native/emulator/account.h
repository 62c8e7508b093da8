// What a launch moves: bytes read from and written to global memory, and the passes that its shared-memory instructions
// take. A warp's instruction serves 128 bytes per pass (8 lanes of 16 bytes, 16 of 8, 32 of less); it needs one more
// for every further word that a bank must deliver in one of them. Only the mode 'counting' counts.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sepconv::emulator {

constexpr uintptr_t sectorBytes = 32;

struct Account {
  uint32_t threads = 0;      // of a block
  uint64_t sharedBytes = 0;  // of a block, the most of all launches
  uint64_t launches = 0, bytesRead = 0, bytesWritten = 0;
  // What memory must move at least, however large the caches: every sector of a launch once each way.
  uint64_t sectorsRead = 0, sectorsWritten = 0;
  uint64_t sharedPasses = 0;                  // that shared-memory instructions took
  uint64_t sharedMinimum = 0;                 // without bank conflicts
  std::map<std::string, uint64_t> conflicts;  // by place in the source: passes beyond the minimum
};

// Since the last call, by name of the launch; starts anew.
std::map<std::string, Account> takeAccounts();

// The shared-memory accesses of one warp since its lanes last met: the n-th access of each lane at one place belong to
// one instruction.
class WarpLog {
 public:
  struct Access {
    const char* file;
    int line, lane, bytes;
    uint32_t address;  // from the start of the block's shared memory
  };
  void add(const Access& access) { accesses_.push_back(access); }
  void flush(Account& account);

 private:
  std::vector<Access> accesses_;
};

}  // namespace sepconv::emulator
