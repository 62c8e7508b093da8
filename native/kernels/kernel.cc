// Typed access to a call's attributes. A missing or ill-typed attribute is a defect of whoever lowered the graph, or of
// a program file that was edited: the message names it.
#include "kernel.h"

#include <cmath>

namespace sepconv {

namespace {

const std::vector<double>& values(const std::map<std::string, std::vector<double>>& numbers, const std::string& name) {
  auto found = numbers.find(name);
  if (found == numbers.end()) throw Error("ERR_FORMAT", "attribute '" + name + "' is missing or not numeric");
  return found->second;
}

int64_t whole(const std::string& name, double value) {
  if (!(std::abs(value) <= 9007199254740991.0) || value != std::floor(value))
    throw Error("ERR_FORMAT", "attribute '" + name + "' must be a whole number, got " + std::to_string(value));
  return static_cast<int64_t>(value);
}

}  // namespace

double Attributes::number(const std::string& name, std::optional<double> fallback) const {
  if (fallback && !numbers_.count(name)) return *fallback;
  const std::vector<double>& list = values(numbers_, name);
  if (list.size() != 1) throw Error("ERR_FORMAT", "attribute '" + name + "' must be one number");
  return list[0];
}

int64_t Attributes::integer(const std::string& name, std::optional<int64_t> fallback) const {
  if (fallback && !numbers_.count(name)) return *fallback;
  return whole(name, number(name));
}

std::vector<int64_t> Attributes::integers(const std::string& name) const {
  std::vector<int64_t> list;
  for (double value : values(numbers_, name)) list.push_back(whole(name, value));
  return list;
}

std::vector<double> Attributes::numbers(const std::string& name) const { return values(numbers_, name); }

std::string Attributes::text(const std::string& name, std::string_view fallback) const {
  auto found = texts_.find(name);
  return found == texts_.end() ? std::string(fallback) : found->second;
}

Activation activation(const Attributes& attributes, const char* name) {
  const std::string text = attributes.text(name, "none");
  if (text == "none") return Activation::none;
  if (text == "relu") return Activation::relu;
  if (text == "elu") return Activation::elu;
  throw Error("ERR_FORMAT", std::string("attribute '") + name + "' must be none, relu or elu, got '" + text + "'");
}

}  // namespace sepconv
