// An execution with a stack of its own, which the scheduler takes up and which goes back to it: a thread of the
// emulated GPU. Sanitizers are told of every switch, and to ThreadSanitizer each fiber is a thread.
#pragma once

#include <functional>

#ifdef EMULATOR_TSAN
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

// What ThreadSanitizer is told by hand, of fibers and of the scheduler: all that is done before happens_before(tag)
// comes before what is done after happens_after(tag). Switching from one to another orders nothing.
#ifdef EMULATOR_TSAN
constexpr bool kOrderIsWatched = true;
inline void happens_before(void* tag) { __tsan_release(tag); }
inline void happens_after(void* tag) { __tsan_acquire(tag); }
#else
constexpr bool kOrderIsWatched = false;
inline void happens_before(void*) {}
inline void happens_after(void*) {}
#endif

class Fiber {
 public:
  // Its body begins when it is first resumed, and must outlive it.
  explicit Fiber(const std::function<void()>& body);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // For the scheduler: runs it until it leaves, or its body ends.
  void resume();
  bool ended() const { return ended_; }
  // The same as if the fiber had said it.
  void happens_before(void* tag);
  void happens_after(void* tag);

  // For the fiber itself: back to the scheduler.
  void leave();

 private:
  static void main();

  const std::function<void()>& body_;
  char* stack_;
  bool ended_ = false;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  void* asan_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace emulator
