// What all executors share: the checks that keep a program and the arguments of its runs inside their memory, and the
// table of state bindings, which a run sees as it was when the run was asked for.
#include "executor.h"

#include <chrono>

namespace sepconv {

namespace {

std::string describe(const BufferDescription& buffer, size_t index) {
  return buffer.name.empty() ? "buffer " + std::to_string(index)
                             : "buffer " + std::to_string(index) + " ('" + buffer.name + "')";
}

void require(bool condition, const std::string& message) {
  if (!condition) throw Error("ERR_FORMAT", "program: " + message);
}

bool inside(size_t offset, size_t bytes, size_t total) { return bytes <= total && offset <= total - bytes; }

// A run's memory must cover the buffer and be aligned to its elements.
void checkBinding(const BufferDescription& buffer, size_t index, const Binding& binding) {
  if (!binding.memory) throw Error("ERR_ARGUMENT", "no memory is bound to " + describe(buffer, index));
  if (!inside(binding.offset, buffer.bytes, binding.memory->bytes()))
    throw Error("ERR_ARGUMENT", describe(buffer, index) + " needs " + std::to_string(buffer.bytes) +
                                    " bytes, got offset " + std::to_string(binding.offset) + " of a block of " +
                                    std::to_string(binding.memory->bytes()));
  if (binding.offset % bytesPerElement(buffer.type.dtype))
    throw Error("ERR_ARGUMENT", describe(buffer, index) + ": offset " + std::to_string(binding.offset) +
                                    " is not a multiple of the element size");
}

bool bindable(const BufferDescription& buffer) {
  return buffer.view < 0 && (buffer.place == Place::state || buffer.place == Place::prepared);
}

}  // namespace

void checkProgram(const ProgramDescription& program) {
  for (size_t i = 0; i < program.buffers.size(); ++i) {
    const BufferDescription& buffer = program.buffers[i];
    double elements = 1;
    for (int64_t size : buffer.type.shape) {
      require(size >= 0, describe(buffer, i) + " has a negative size");
      elements *= static_cast<double>(size);
    }
    require(elements < 1e15 && buffer.bytes >= buffer.type.bytes(), describe(buffer, i) + " is smaller than its shape");
    if (buffer.view >= 0) {
      const size_t viewed = static_cast<size_t>(buffer.view);
      require(viewed < program.buffers.size() && program.buffers[viewed].view < 0,
              describe(buffer, i) + " is a view of no buffer");
      require(buffer.bytes <= program.buffers[viewed].bytes, describe(buffer, i) + " is larger than what it views");
      continue;
    }
    if (buffer.place == Place::arena) {
      require(inside(buffer.offset, buffer.bytes, program.arenaBytes), describe(buffer, i) + " lies outside the arena");
      require(buffer.offset % 64 == 0, describe(buffer, i) + " is not 64-byte aligned in the arena");
    }
    if (buffer.place == Place::constant)
      require(buffer.data.size() == buffer.bytes, describe(buffer, i) + ": a constant of " +
                                                      std::to_string(buffer.bytes) + " bytes carries " +
                                                      std::to_string(buffer.data.size()));
  }
  auto checkIndex = [&](int32_t index, const std::string& who) {
    require(index >= 0 && static_cast<size_t>(index) < program.buffers.size(),
            who + ": there is no buffer " + std::to_string(index));
  };
  auto checkArguments = [&](const std::vector<int32_t>& list, Place place, const char* what) {
    for (int32_t index : list) {
      checkIndex(index, what);
      const BufferDescription& buffer = program.buffers[static_cast<size_t>(index)];
      require(buffer.place == place && buffer.view < 0,
              std::string(what) + ": buffer " + std::to_string(index) + " is of another place");
    }
  };
  checkArguments(program.inputs, Place::input, "inputs");
  checkArguments(program.outputs, Place::output, "outputs");
  std::vector<bool> given(program.buffers.size());
  for (int32_t index : program.inputs) given[static_cast<size_t>(index)] = true;
  for (int32_t index : program.outputs) given[static_cast<size_t>(index)] = true;
  for (size_t i = 0; i < program.buffers.size(); ++i) {
    const Place place = program.buffers[i].place;
    require(given[i] || program.buffers[i].view >= 0 || (place != Place::input && place != Place::output),
            describe(program.buffers[i], i) + " is not among the program's inputs or outputs");
  }
  for (const ProgramCall& call : program.calls) {
    const std::string who = call.scope.empty() ? call.kernel : call.scope + " (" + call.kernel + ")";
    for (int32_t index : call.inputBuffers)
      if (index != -1) checkIndex(index, who);
    for (int32_t index : call.outputBuffers) checkIndex(index, who);
    require(inside(call.workspaceOffset, call.workspaceBytes, program.arenaBytes) && call.workspaceOffset % 64 == 0,
            who + ": its workspace lies outside the arena");
  }
  require(program.updateStart <= program.calls.size(), "updateStart lies beyond the last call");
}

double LoadedProgram::elapsed(const Run& run) {
  const auto start = std::chrono::steady_clock::now();
  execute(run);
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

LoadedProgram::LoadedProgram(ProgramDescription description)
    : description_(std::move(description)),
      states_(std::make_shared<std::vector<Binding>>(description_.buffers.size())) {
  for (size_t i = 0; i < description_.buffers.size(); ++i)
    if (bindable(description_.buffers[i])) stateBuffers_.push_back(static_cast<int32_t>(i));
}

void LoadedProgram::bind(size_t buffer, Binding binding) {
  if (buffer >= description_.buffers.size() || !bindable(description_.buffers[buffer]))
    throw Error("ERR_ARGUMENT", "buffer " + std::to_string(buffer) + " of the program is neither state nor prepared");
  checkBinding(description_.buffers[buffer], buffer, binding);
  if (states_.use_count() > 1) states_ = std::make_shared<std::vector<Binding>>(*states_);
  (*states_)[buffer] = std::move(binding);
}

std::shared_ptr<Run> LoadedProgram::prepare(std::vector<Binding> inputs, std::vector<Binding> outputs) const {
  auto check = [&](const std::vector<Binding>& given, const std::vector<int32_t>& wanted, const char* what) {
    if (given.size() != wanted.size())
      throw Error("ERR_ARGUMENT", "the program takes " + std::to_string(wanted.size()) + " " + what + ", got " +
                                      std::to_string(given.size()));
    for (size_t i = 0; i < given.size(); ++i) {
      const size_t index = static_cast<size_t>(wanted[i]);
      checkBinding(description_.buffers[index], index, given[i]);
    }
  };
  check(inputs, description_.inputs, "inputs");
  check(outputs, description_.outputs, "outputs");
  for (int32_t index : stateBuffers_)
    if (!(*states_)[static_cast<size_t>(index)].memory)
      throw Error("ERR_ARGUMENT", "no memory is bound to " + describe(description_.buffers[static_cast<size_t>(index)],
                                                                      static_cast<size_t>(index)));
  auto run = std::make_shared<Run>();
  run->inputs = std::move(inputs);
  run->outputs = std::move(outputs);
  run->states = states_;
  return run;
}

}  // namespace sepconv
