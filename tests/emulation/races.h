// Races between the threads of a launch, in shared memory and between blocks: g++ -fsanitize=thread calls a
// function before every access to memory, and here those functions are ours, in place of ThreadSanitizer's
// library.
//
// Two accesses to a byte, one a write, by two threads are a race unless both are atomic, or ordered: in one
// block by a
// __syncthreads between them, in one warp also by a __syncwarp. Blocks of a launch are never ordered; a
// kernel that orders them by fences and atomics would be reported. Shuffles and ballots order nothing, as in
// CUDA's memory model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cfmvit::emulation {

[[noreturn]] void fail(const char* format, ...);

// Who touched a byte last, and when; launch 0 is nobody.
struct Access {
  uint32_t launch = 0, block = 0, barriers = 0, warp_barriers = 0;
  uint16_t thread = 0;
  bool atomic = false;
};

// Two readers that nothing orders stand for all: a writer is not both.
struct Byte {
  Access write, read, other_read;
};

struct Watched {
  uintptr_t end = 0;
  std::string name;
  bool of_block = false;  // shared memory: each block has its own
  std::vector<Byte> bytes;
};

struct Races {
  std::map<uintptr_t, Watched> memory;
  Access now;  // of the thread that runs
};
// Leaked, so that it outlives every array.
inline Races& races = *new Races;
// Set while a thread runs its kernel; before main too, it says no.
inline constinit bool watching = false;

#ifdef CFMVIT_RACES
inline void watch(const void* begin, size_t bytes, const std::string& name, bool of_block = false) {
  if (bytes == 0) return;
  const auto at = reinterpret_cast<uintptr_t>(begin);
  races.memory[at] = {at + bytes, name, of_block, std::vector<Byte>(bytes)};
}
inline void forget(const void* begin) { races.memory.erase(reinterpret_cast<uintptr_t>(begin)); }

inline bool unordered(const Access& before, const Watched& memory) {
  const Access& now = races.now;
  if (before.launch != now.launch || (before.block != now.block && memory.of_block)) return false;
  if (before.block != now.block) return true;
  if (before.thread == now.thread || before.barriers != now.barriers) return false;
  return before.thread / 32 != now.thread / 32 || before.warp_barriers == now.warp_barriers;
}

[[noreturn]] inline void race(const char* what, const Access& before, const Watched& memory, size_t at) {
  const Access& now = races.now;
  fail("race: byte %zu of %s is %s by thread %u of block %llu and thread %u of block %llu", at,
       memory.name.c_str(), what, before.thread, before.block, now.thread, now.block);
}

inline void touch(uintptr_t address, size_t size, bool write) {
  auto found = races.memory.upper_bound(address);
  if (found == races.memory.begin()) return;
  Watched& memory = (--found)->second;
  const Access& now = races.now;
  const auto clash = [&](const Access& before) {
    return unordered(before, memory) && !(before.atomic && now.atomic);
  };
  for (uintptr_t at = address; at < address + size && at < memory.end; ++at) {
    const size_t i = at - found->first;
    Byte& byte = memory.bytes[i];
    if (clash(byte.write)) race(write ? "written twice," : "written and read,", byte.write, memory, i);
    if (!write) {
      if (unordered(byte.read, memory)) byte.other_read = byte.read;
      byte.read = now;
      continue;
    }
    for (const Access& read : {byte.read, byte.other_read}) {
      if (clash(read)) race("read and written,", read, memory, i);
    }
    byte.write = now;
  }
}

#else
inline void watch(const void*, size_t, const std::string&, bool = false) {}
inline void forget(const void*) {}
#endif

}  // namespace cfmvit::emulation

#ifdef CFMVIT_RACES
#define CFMVIT_HOOK __attribute__((no_sanitize("thread")))

// Looks at an access, but not at the accesses of looking.
CFMVIT_HOOK inline void cfmvit_touch(void* address, size_t size, bool write) {
  using namespace cfmvit::emulation;
  if (!watching) return;
  watching = false;
  touch(reinterpret_cast<uintptr_t>(address), size, write);
  watching = true;
}

#define CFMVIT_SIZE(n)                                                                \
  CFMVIT_HOOK void __tsan_read##n(void* at) { cfmvit_touch(at, n, false); }           \
  CFMVIT_HOOK void __tsan_write##n(void* at) { cfmvit_touch(at, n, true); }           \
  CFMVIT_HOOK void __tsan_unaligned_read##n(void* at) { cfmvit_touch(at, n, false); } \
  CFMVIT_HOOK void __tsan_unaligned_write##n(void* at) { cfmvit_touch(at, n, true); }

extern "C" {
CFMVIT_SIZE(1)
CFMVIT_SIZE(2)
CFMVIT_SIZE(4)
CFMVIT_SIZE(8)
CFMVIT_SIZE(16)
CFMVIT_HOOK void __tsan_read_range(void* at, size_t size) { cfmvit_touch(at, size, false); }
CFMVIT_HOOK void __tsan_write_range(void* at, size_t size) { cfmvit_touch(at, size, true); }
CFMVIT_HOOK void __tsan_init() {}
CFMVIT_HOOK void __tsan_func_entry(void*) {}
CFMVIT_HOOK void __tsan_func_exit() {}
CFMVIT_HOOK void __tsan_vptr_update(void**, void*) {}
CFMVIT_HOOK void __tsan_vptr_read(void**) {}
// Of the standard library, which runs on one thread here.
CFMVIT_HOOK int __tsan_atomic32_fetch_add(int* at, int by, int) {
  const int before = *at;
  *at = before + by;
  return before;
}
CFMVIT_HOOK char __tsan_atomic8_load(const char* at, int) { return *at; }
}
#undef CFMVIT_SIZE
#undef CFMVIT_HOOK
#endif
