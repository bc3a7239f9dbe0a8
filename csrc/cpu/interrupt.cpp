#include "cpu/interrupt.h"

#include "torch/checks.h"

namespace cfmvit {

bool Interrupt::requested() {
  if (std::this_thread::get_id() == caller_ && !requested_.load(std::memory_order_relaxed) &&
      Clock::now() >= next_) {
    if (handlers_raise != nullptr && handlers_raise()) requested_ = true;
    next_ = Clock::now() + kPeriod;
  }
  return requested_.load(std::memory_order_relaxed);
}

void Interrupt::check(const char* op) const { CFMVIT_CHECK(!requested_, op, ": interrupted by a signal"); }

}  // namespace cfmvit
