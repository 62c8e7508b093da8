#include "communicator.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include <algorithm>
#include <chrono>

#include "../mpi/shim.h"

namespace sepconv {

namespace {
Collectives* all = nullptr;
}

Collectives* collectives() { return all; }
void setCollectives(Collectives* collectives) { all = collectives; }

namespace distributed {

namespace {

using Clock = std::chrono::steady_clock;

// Between two looks at MPI while a sum is under way and the processor has something better to do: a look and the two
// switches of thread around it take some 5 us, so this costs a rank of one core 5 % of it. A program that comes to
// stand still for the sum ends the pause.
constexpr auto kPatience = std::chrono::microseconds(100);
// How long the processor is kept, but for others who want it, while a program stands still for a sum; after that this
// thread sleeps for so many nanoseconds in between.
constexpr auto kHurry = std::chrono::milliseconds(2);
constexpr long kHurryNanoseconds = 20000;
// Between two looks for messages of other ranks while nothing is under way.
constexpr auto kIdle = std::chrono::milliseconds(2);
constexpr auto kFarewellTime = std::chrono::seconds(3);

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// "Open MPI v4.1.4, package: …" and "MPICH Version: 4.0.2" begin with what the shim was compiled for, but for
// punctuation; the release is left to the library, which keeps its binary interface within a minor version.
bool sameVersion(const std::string& compiled, const std::string& loaded) {
  const auto normal = [](const std::string& text) {
    std::string words;
    int dots = 0;
    bool digits = false;
    for (const char c : text) {
      if (c >= '0' && c <= '9') {
        digits = true;
        words += c;
      } else if (digits && c == '.') {
        if (++dots == 2) break;
        words += c;
      } else if (digits) {
        break;
      } else if ((c >= 'A' && c <= 'Z')) {
        words += c;  // "Open MPI v" and "MPICH Version:": OMPI, MPICHV
      }
    }
    words.erase(std::remove(words.begin(), words.end(), 'V'), words.end());
    return words;
  };
  return normal(compiled) == normal(loaded);
}

}  // namespace

Communicator::Communicator(const std::string& shim) {
  // Open MPI's components before version 5 take its symbols from the global scope without linking to them, hence
  // RTLD_GLOBAL. Never closed: threads and exit handlers of the library stay behind.
  void* library = dlopen(shim.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw Error("ERR_MPI", std::string("the MPI library cannot be loaded: ") + dlerror());
  const auto open = reinterpret_cast<const sepconv_mpi* (*)()>(dlsym(library, "sepconv_mpi_table"));
  if (!open) throw Error("ERR_MPI", shim + " is no shim of sepconv");
  mpi_ = open();
  if (mpi_->abi != SEPCONV_MPI_ABI)
    throw Error("ERR_MPI", shim + " has interface " + std::to_string(mpi_->abi) + ", this sepconv wants " +
                               std::to_string(SEPCONV_MPI_ABI));
  char text[256];
  mpi_->library(text, sizeof text);
  library_ = text;
  if (!sameVersion(mpi_->compiled, library_))
    throw Error("ERR_MPI", "the shim was compiled for " + std::string(mpi_->compiled) + ", and " + library_ +
                               " was loaded: both must come from one installation");
  sigset_t blocked, before;
  sigfillset(&blocked);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  thread_ = std::thread([this] { serve(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return state_ != State::starting; });
  if (startError_) {
    const Error error = *startError_;
    lock.unlock();
    thread_.join();
    throw error;
  }
}

Communicator::~Communicator() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state_ == State::running) state_ = State::ended;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

Error Communicator::inWords(int code, const char* what) const {
  char text[256];
  mpi_->error(code, text, sizeof text);
  return Error("ERR_MPI", std::string(what) + ": " + text);
}

Error Communicator::broken() const { return Error("ERR_RANK", failure_.value_or("the communicator is closed")); }

void Communicator::post(Entry entry) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (failure_ || state_ != State::running) {
    const Error error = broken();
    lock.unlock();
    finish(entry, error);
    return;
  }
  queue_.push_back(std::move(entry));
  wake_.notify_one();
}

void Communicator::allGather(Bytes own, Completed completed) {
  auto entry = std::make_shared<Operation>();
  entry->kind = Kind::allGather;
  entry->all.resize(own.size() * static_cast<size_t>(size_));
  entry->own = std::move(own);
  entry->completed = std::move(completed);
  post(std::move(entry));
}

void Communicator::gather(Bytes own, Completed completed) {
  auto entry = std::make_shared<Operation>();
  entry->kind = Kind::gather;
  if (rank_ == 0) entry->all.resize(own.size() * static_cast<size_t>(size_));
  entry->own = std::move(own);
  entry->completed = std::move(completed);
  post(std::move(entry));
}

void Communicator::broadcast(Bytes bytes, Completed completed) {
  auto entry = std::make_shared<Operation>();
  entry->kind = Kind::broadcast;
  entry->all = std::move(bytes);
  entry->completed = std::move(completed);
  post(std::move(entry));
}

void Communicator::send(int to, int tag, Bytes bytes, Completed completed) {
  auto entry = std::make_shared<Operation>();
  entry->to = to;
  entry->tag = tag;
  entry->own = std::move(bytes);
  entry->completed = std::move(completed);
  post(std::move(entry));
}

void Communicator::setReceiver(Receiver receiver) {
  std::lock_guard<std::mutex> lock(mutex_);
  receiver_ = std::move(receiver);
}

void Communicator::start(float* values, int64_t count) {
  auto entry = std::make_shared<Operation>();
  entry->kind = Kind::allReduce;
  entry->sum.values = values;
  entry->sum.count = count;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!sums_.emplace(values, entry).second)
      throw Error("ERR_INTERNAL", "a sum over all ranks was started twice before it was waited for");
    ++statistics_.reductions;
    statistics_.bytes += static_cast<uint64_t>(count) * sizeof(float);
  }
  post(std::move(entry));
}

void Communicator::wait(float* values) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto found = sums_.find(values);
  if (found == sums_.end()) throw Error("ERR_INTERNAL", "a sum over all ranks was waited for that nobody started");
  const Entry entry = found->second;
  if (!entry->done) {
    const auto since = Clock::now();
    ++waiting_;
    wake_.notify_one();
    // Being woken takes longer than the last sum of a step does.
    while (!entry->done && Clock::now() - since < kHurry) {
      lock.unlock();
      sched_yield();
      lock.lock();
    }
    done_.wait(lock, [&] { return entry->done; });
    --waiting_;
    statistics_.waitSeconds += seconds(Clock::now() - since);
  }
  sums_.erase(found);
  if (entry->error) throw *entry->error;
}

void Communicator::check() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_) throw Error("ERR_RANK", *failure_);
}

Statistics Communicator::takeStatistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  const Statistics taken = statistics_;
  statistics_ = Statistics{};
  return taken;
}

void Communicator::fail(const std::string& reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_ || state_ != State::running) return;
  for (int to = 0; to < size_; ++to) {
    if (to == rank_) continue;
    auto entry = std::make_shared<Operation>();
    entry->to = to;
    entry->tag = kFailure;
    entry->own.assign(reason.begin(), reason.end());
    queue_.push_back(std::move(entry));
  }
  failure_ = reason;
  wake_.notify_one();
}

void Communicator::close(int status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state_ != State::running) return;
    state_ = State::closing;
    status_ = status;
    wake_.notify_one();
  }
  thread_.join();
}

void Communicator::begin(Operation& operation) {
  const long bytes = static_cast<long>(operation.own.size());
  int code = 0;
  switch (operation.kind) {
    case Kind::allReduce:
      if (!shared_.usable())
        code = mpi_->all_reduce(SEPCONV_MPI_DATA, operation.sum.values, static_cast<long>(operation.sum.count),
                                &operation.request);
      break;
    case Kind::allGather:
      code =
          mpi_->all_gather(SEPCONV_MPI_CONTROL, operation.own.data(), operation.all.data(), bytes, &operation.request);
      break;
    case Kind::gather:
      code = mpi_->gather(SEPCONV_MPI_CONTROL, operation.own.data(), operation.all.data(), bytes, &operation.request);
      break;
    case Kind::broadcast:
      code = mpi_->broadcast(SEPCONV_MPI_CONTROL, operation.all.data(), static_cast<long>(operation.all.size()),
                             &operation.request);
      break;
    case Kind::send:
      code = mpi_->send(operation.own.data(), bytes, operation.to, operation.tag, &operation.request);
      break;
  }
  if (code) throw inWords(code, "a message to other ranks cannot be sent");
}

bool Communicator::advance(Operation& operation, bool* moved) {
  int code = 0;
  bool complete = false;
  if (operation.kind == Kind::allReduce && shared_.usable()) {
    const int64_t before = operation.sum.at;
    code = shared_.advance(operation.sum, &complete);
    if (operation.sum.at != before) *moved = true;
  } else {
    int done = 0;
    code = mpi_->test(operation.request, &done);
    if (code) operation.request = nullptr;  // gone with the error
    complete = done != 0;
  }
  if (code) throw inWords(code, "the exchange with other ranks failed");
  if (complete) *moved = true;
  return complete;
}

void Communicator::finish(const Entry& entry, std::optional<Error> error) {
  if (entry->completed) {
    const Completed completed = std::move(entry->completed);
    // MPI may still write into what an operation that failed was given.
    completed(error, error ? Bytes() : std::move(entry->all));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  entry->done = true;
  entry->error = std::move(error);
  done_.notify_all();
}

bool Communicator::receive() {
  Message message;
  long bytes = 0;
  if (!mpi_->probe(&message.from, &message.tag, &bytes)) return false;
  message.bytes.resize(static_cast<size_t>(bytes));
  if (const int code = mpi_->receive(message.bytes.data(), bytes, message.from, message.tag))
    throw inWords(code, "a message of another rank cannot be received");
  std::unique_lock<std::mutex> lock(mutex_);
  if (message.tag == kFailure) {
    if (!failure_) failure_ = std::string(message.bytes.begin(), message.bytes.end());
    return true;
  }
  if (message.tag == kFarewell) {
    ++farewells_;
    return true;
  }
  const Receiver receiver = receiver_;
  lock.unlock();
  if (receiver) receiver(std::move(message));
  return true;
}

void Communicator::rest(std::chrono::steady_clock::time_point moved) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto needed = [&] { return waiting_ > 0 || !queue_.empty() || state_ != State::running || failure_; };
    if (!needed()) {
      wake_.wait_for(lock, kPatience, needed);
      return;
    }
  }
  if (Clock::now() - moved < kHurry) {
    sched_yield();
    return;
  }
  const timespec time = {0, kHurryNanoseconds};
  nanosleep(&time, nullptr);
}

void Communicator::serve() {
#if defined(__linux__)
  prctl(PR_SET_NAME, "sepconv-mpi");
  prctl(PR_SET_TIMERSLACK, 1);  // nanoseconds; by default a short sleep takes 50 us longer
#endif
  std::optional<Error> error;
  if (const int code = mpi_->init(&threadLevel_)) {
    error =
        code == -1 ? Error("ERR_MPI", "MPI is already in use by this process") : inWords(code, "MPI cannot be started");
  } else if (threadLevel_ < 1) {
    error = Error("ERR_MPI", library_ + " was built without support for threads (MPI_THREAD_FUNNELED)");
  } else {
    rank_ = mpi_->rank();
    size_ = mpi_->size();
    localRank_ = mpi_->local_rank();
    localSize_ = mpi_->local_size();
    shared_.open(mpi_, rank_, size_, localSize_);
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    startError_ = error;
    state_ = error ? State::ended : State::running;
    done_.notify_all();
  }
  if (error) return;

  Clock::time_point last = Clock::now();
  Clock::time_point progress = last;
  bool busy = false;  // whether a sum was under way at the last look
  for (;;) {
    std::deque<Entry> fresh;
    State state;
    std::optional<std::string> failure;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (active_.empty() && queue_.empty() && state_ == State::running) wake_.wait_for(lock, kIdle);
      fresh.swap(queue_);
      state = state_;
      failure = failure_;
      const Clock::time_point now = Clock::now();
      if (busy) statistics_.busySeconds += seconds(now - last);
      last = now;
    }
    if (state == State::ended) return;
    if (state == State::closing && active_.empty() && fresh.empty() && !failure) break;
    bool moved = !fresh.empty();
    try {
      for (Entry& entry : fresh) {
        // Notices of failure still go out; nothing else does.
        if (failure && !(entry->kind == Kind::send && entry->tag == kFailure)) {
          finish(entry, Error("ERR_RANK", *failure));
          continue;
        }
        active_.push_back(entry);
        begin(*entry);
      }
      bool inTurn = true;  // sums in shared memory are made one after the other
      for (size_t i = 0; i < active_.size();) {
        const bool sum = active_[i]->kind == Kind::allReduce;
        if ((sum && shared_.usable() && !inTurn) || !advance(*active_[i], &moved)) {
          if (sum) inTurn = false;
          ++i;
          continue;
        }
        const Entry entry = active_[i];
        active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
        finish(entry, {});
      }
      while (receive()) moved = true;
    } catch (const Error& problem) {
      fail(problem.what());
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      failure = failure_;
    }
    if (failure) {
      // What is under way will never be complete. MPI may still write into its memory, so that is kept for good.
      std::vector<Entry> lost;
      lost.swap(active_);
      for (const Entry& entry : lost) {
        if (entry->kind == Kind::send && entry->tag == kFailure) {
          active_.push_back(entry);
          continue;
        }
        new Entry(entry);
        finish(entry, Error("ERR_RANK", *failure));
      }
    }
    if (failure && state == State::closing) break;
    busy =
        std::any_of(active_.begin(), active_.end(), [](const Entry& entry) { return entry->kind == Kind::allReduce; });
    if (moved)
      progress = Clock::now();
    else if (!active_.empty())
      rest(progress);
  }
  leave(status_);
}

void Communicator::leave(int status) {
  bool failed;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    failed = failure_.has_value();
  }
  if (failed) {
    const auto until = Clock::now() + kFarewellTime;
    std::vector<void*> requests;
    for (const Entry& entry : active_)
      if (entry->request) requests.push_back(entry->request);
    const uint8_t none = 0;
    for (int to = 0; to < size_; ++to) {
      void* request = nullptr;
      if (to != rank_ && !mpi_->send(&none, 0, to, kFarewell, &request)) requests.push_back(request);
    }
    while (Clock::now() < until) {
      try {
        receive();
      } catch (const Error&) {
        break;
      }
      requests.erase(std::remove_if(requests.begin(), requests.end(),
                                    [&](void* request) {
                                      int done = 0;
                                      return mpi_->test(request, &done) || done;
                                    }),
                     requests.end());
      if (farewells_ >= size_ - 1 && requests.empty()) break;
      const timespec time = {0, kHurryNanoseconds};
      nanosleep(&time, nullptr);
    }
    mpi_->abort(status ? status : 1);
  } else {
    mpi_->finalize();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  state_ = State::ended;
}

}  // namespace distributed
}  // namespace sepconv
