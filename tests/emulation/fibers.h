// The engine of the emulation: a block's threads as fibers, switched at barriers and exchanges; warps, lanes
// and blocks in an order drawn from a seed. Any breach of the rules ends the program with a message.
#pragma once

#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "races.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace cfmvit::emulation {

constexpr int kLanes = 32, kVote = -1;
constexpr size_t kStack = 256 * 1024, kGuard = 4096;
// What every supported GPU grants a block: compute capability 12.0 has the least shared memory.
constexpr unsigned kMostThreads = 1024, kMostBlocksYZ = 65535;
constexpr size_t kMostShared = 99 * 1024;

// What a thread waits at.
struct Place {
  const char *what, *file;
  int line;
  bool operator==(const Place& other) const {
    return std::strcmp(what, other.what) == 0 && std::strcmp(file, other.file) == 0 && line == other.line;
  }
};

using Jump = void* [5];  // of __builtin_setjmp

enum class State { ready, exchange, barrier, done };

struct Thread {
  ucontext_t entry;  // where a fiber starts; later it is entered where it left
  Jump left;
  bool started = false;
  std::unique_ptr<char, void (*)(char*)> stack{nullptr, nullptr};
  void* fake_stack = nullptr;
  State state = State::done;
  uint3 index{};
  Place place{};
  unsigned mask = 0;
  uint64_t given = 0, taken = 0;
  int source = 0;
  uint32_t warp_barriers = 0;  // that it has passed
};

// Everything that lives as long as the program.
struct Device {
  std::vector<std::unique_ptr<Thread>> threads;
  Jump scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  Thread* current = nullptr;
  uint32_t launches = 0, barriers = 0;  // so far
  std::function<void()> kernel;
  std::unique_ptr<void, void (*)(void*)> shared{
      nullptr, std::free};  // a fresh allocation for each launch, so that ASan knows its end
  std::mt19937 random;
};
inline Device device;

inline void seed(unsigned value) { device.random.seed(value); }

inline uint64_t flat(uint3 at, dim3 size) {
  return at.x + uint64_t{size.x} * (at.y + uint64_t{size.y} * at.z);
}

[[noreturn]] inline void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::fputs("emulation: ", stderr);
  std::vfprintf(stderr, format, values);
  std::fprintf(stderr, " (block %u,%u,%u)\n", blockIdx.x, blockIdx.y, blockIdx.z);
  va_end(values);
  std::_Exit(3);
}

template <typename T>
void shuffle_order(std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[device.random() % i]);
}

// The compiler's own jumps: ASan would follow swapcontext and longjmp by clearing what it knows of the whole
// stack.
#define CFMVIT_UNWATCHED __attribute__((noinline, no_sanitize("address", "undefined")))

[[noreturn]] CFMVIT_UNWATCHED inline void jump(Jump& to) { __builtin_longjmp(to, 1); }

CFMVIT_UNWATCHED inline void switch_fiber(Jump& from, Thread& to) {
  if (__builtin_setjmp(from) != 0) return;
  if (to.started) jump(to.left);
  to.started = true;
  setcontext(&to.entry);
}
CFMVIT_UNWATCHED inline void switch_to_scheduler(Jump& from) {
  if (__builtin_setjmp(from) == 0) jump(device.scheduler);
}
#undef CFMVIT_UNWATCHED

inline void resume(Thread& thread) {
  device.current = &thread;
  threadIdx = thread.index;
  races.now = {device.launches,      static_cast<uint32_t>(flat(blockIdx, gridDim)),   device.barriers,
               thread.warp_barriers, static_cast<uint16_t>(flat(threadIdx, blockDim)), false};
  watching = true;
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.stack.get(), kStack);
#endif
  switch_fiber(device.scheduler, thread);
  watching = false;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

inline void arrive_on_fiber([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, &device.scheduler_stack, &device.scheduler_stack_bytes);
#endif
}

inline void pause() {
  Thread& thread = *device.current;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&thread.fake_stack, device.scheduler_stack, device.scheduler_stack_bytes);
#endif
  switch_to_scheduler(thread.left);
  arrive_on_fiber(thread.fake_stack);
}

// A fiber outlives the blocks: it runs the kernel whenever it is resumed anew.
inline void run_fiber() {
  arrive_on_fiber(nullptr);
  for (;;) {
    device.kernel();
    device.current->state = State::done;
    pause();
  }
}

inline std::unique_ptr<Thread> make_thread() {
  auto thread = std::make_unique<Thread>();
  void* at = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED || mprotect(at, kGuard, PROT_NONE) != 0) fail("no memory for a stack");
  thread->stack = {static_cast<char*>(at) + kGuard,
                   [](char* stack) { munmap(stack - kGuard, kStack + kGuard); }};
  getcontext(&thread->entry);
  thread->entry.uc_stack.ss_sp = thread->stack.get();
  thread->entry.uc_stack.ss_size = kStack;
  thread->entry.uc_link = nullptr;
  makecontext(&thread->entry, &run_fiber, 0);
  return thread;
}

inline int lane() { return static_cast<int>(flat(threadIdx, blockDim) % kLanes); }

inline void barrier(Place place) {
  device.current->state = State::barrier;
  device.current->place = place;
  pause();
}

// Gives `value` to the lanes of `mask` and takes what lane `source` gave; with kVote, the bits of all that
// gave 1.
inline uint64_t exchange(Place place, unsigned mask, uint64_t value, int source) {
  Thread& thread = *device.current;
  if (!(mask >> lane() & 1u))
    fail("%s:%d: %s: lane %d is not in its own mask %08x", place.file, place.line, place.what, lane(), mask);
  if (source != kVote && !(mask >> source & 1u)) {
    fail("%s:%d: %s: lane %d reads lane %d, which is not in the mask %08x", place.file, place.line,
         place.what, lane(), source, mask);
  }
  thread.state = State::exchange;
  thread.place = place;
  thread.mask = mask;
  thread.given = value;
  thread.source = source;
  pause();
  return thread.taken;
}

// A block's threads, and the progress of its warps.
class Block {
 public:
  explicit Block(dim3 size) : count_(size.x * size.y * size.z) {
    while (device.threads.size() < count_) device.threads.push_back(make_thread());
    for (unsigned i = 0; i < count_; ++i) {
      at(i).index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      at(i).state = State::ready;
    }
  }

  void run() {
    std::vector<unsigned> busy((count_ + kLanes - 1) / kLanes);
    std::iota(busy.begin(), busy.end(), 0u);
    while (!busy.empty()) {
      std::vector<unsigned> moving = busy;
      while (!moving.empty()) {  // until every warp is at a barrier or done
        const size_t pick = device.random() % moving.size();
        if (!step(moving[pick])) {
          moving[pick] = moving.back();
          moving.pop_back();
        }
      }
      std::erase_if(busy, [&](unsigned warp) { return at(warp * kLanes).state == State::done; });
      pass_barrier();
    }
  }

 private:
  Thread& at(unsigned i) const { return *device.threads[i]; }
  unsigned end_of(unsigned warp) const { return std::min(count_, (warp + 1) * kLanes); }

  // Runs the ready lanes of a warp to where they wait, and completes its exchanges. False: all wait for a
  // barrier, or are done.
  bool step(unsigned warp) {
    std::vector<unsigned> ready;
    for (unsigned i = warp * kLanes; i < end_of(warp); ++i) {
      if (at(i).state == State::ready) ready.push_back(i);
    }
    shuffle_order(ready);
    for (const unsigned i : ready) resume(at(i));
    bool moved = false;
    const Thread* waiting = nullptr;
    for (unsigned i = warp * kLanes; i < end_of(warp); ++i) {
      if (at(i).state != State::exchange) continue;
      if (complete(warp, at(i))) {
        moved = true;
      } else {
        waiting = &at(i);
      }
    }
    if (waiting && !moved && ready.empty()) divergent(warp, *waiting);
    return moved || waiting;
  }

  bool complete(unsigned warp, const Thread& first) {
    const unsigned mask = first.mask;
    std::vector<Thread*> lanes(kLanes, nullptr);
    uint64_t votes = 0;
    for (unsigned l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1u)) continue;
      const unsigned i = warp * kLanes + l;
      if (i >= count_ || at(i).state != State::exchange || at(i).mask != mask ||
          !(at(i).place == first.place))
        return false;
      lanes[l] = &at(i);
      votes |= at(i).given << l;
    }
    for (Thread* thread : lanes) {
      if (!thread) continue;
      thread->taken = thread->source == kVote ? votes : lanes[thread->source]->given;
      thread->state = State::ready;
      if (std::strcmp(thread->place.what, "__syncwarp") == 0) ++thread->warp_barriers;
    }
    return true;
  }

  [[noreturn]] void divergent(unsigned warp, const Thread& waiting) const {
    for (unsigned l = 0; l < kLanes; ++l) {
      const unsigned i = warp * kLanes + l;
      if (!(waiting.mask >> l & 1u)) continue;
      if (i < count_ && at(i).state == State::exchange && at(i).mask == waiting.mask &&
          at(i).place == waiting.place)
        continue;
      fail("%s:%d: divergent exchange: %s with mask %08x, but lane %u of warp %u %s", waiting.place.file,
           waiting.place.line, waiting.place.what, waiting.mask, l, warp,
           i < count_ ? where(at(i)).c_str() : "does not exist");
    }
    fail("divergent exchange");
  }

  static std::string where(const Thread& thread) {
    if (thread.state == State::done) return "has exited";
    return "waits at " + std::string(thread.place.file) + ":" + std::to_string(thread.place.line) + ", " +
           thread.place.what;
  }

  // Every thread is at the same barrier, or every one is done.
  void pass_barrier() {
    const Thread& first = at(0);
    for (unsigned i = 1; i < count_; ++i) {
      if (at(i).state == first.state && (first.state == State::done || at(i).place == first.place)) continue;
      fail("barrier not reached by all: thread 0 %s, but thread %u %s", where(first).c_str(), i,
           where(at(i)).c_str());
    }
    ++device.barriers;
    for (unsigned i = 0; i < count_; ++i) {
      if (at(i).state == State::barrier) at(i).state = State::ready;
    }
  }

  unsigned count_;
};

inline void* shared_memory() { return device.shared.get(); }

struct Memory {
  void* begin = nullptr;
  size_t bytes = 0;
};

// The static __shared__ variables: the thread-local storage of the program.
inline Memory static_shared() {
  Memory found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* memory) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_TLS) *static_cast<Memory*>(memory) = {info->dlpi_tls_data, header.p_memsz};
        }
        return 1;  // the first entry is the program itself
      },
      &found);
  return found.begin ? found : Memory{};
}

// 0xff bytes: a NaN of every float type, and -1.
inline void poison(Memory memory) {
  if (memory.bytes) std::memset(memory.begin, 0xff, memory.bytes);
}

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    fail("a block of %u,%u,%u threads", block.x, block.y, block.z);
  if (grid.x > 0x7fffffffu || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ)
    fail("a grid of %u,%u,%u blocks", grid.x, grid.y, grid.z);
  if (shared_bytes > kMostShared)
    fail("%zu bytes of shared memory, beyond the %zu of every GPU", shared_bytes, kMostShared);
  device.kernel = kernel;
  forget(device.shared.get());
  device.shared.reset(std::malloc(shared_bytes));
  watch(device.shared.get(), shared_bytes, "dynamic shared memory", true);
  static const Memory fixed = static_shared();
  watch(fixed.begin, fixed.bytes, "static shared memory", true);
  ++device.launches;
  gridDim = grid;
  blockDim = block;
  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  shuffle_order(order);
  for (const uint64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    poison({device.shared.get(), shared_bytes});
    poison(fixed);
    Block(block).run();
  }
}

}  // namespace cfmvit::emulation
