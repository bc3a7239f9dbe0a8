// Signals, Ctrl-C above all, during a long call.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace cfmvit {

// Python runs the handlers of signals on the thread that called the op, and only when asked to: the loops of
// an op ask between work items, ten times a second, and all threads leave once a handler has
// raised. Made by the thread that calls the op.
class Interrupt {
 public:
  // Runs the handlers of pending signals and tells whether one raised; set by the Python module.
  static inline bool (*handlers_raise)() = nullptr;

  // Whether to leave; any thread may ask. The results are then incomplete.
  bool requested();
  // Raises where the loops were left. For the thread that made it, once the others have left.
  void check(const char* op) const;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPeriod{100};

  const std::thread::id caller_ = std::this_thread::get_id();
  Clock::time_point next_ = Clock::now() + kPeriod;
  std::atomic<bool> requested_ = false;
};

}  // namespace cfmvit
