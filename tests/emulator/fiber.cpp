// Stacks, switches between them, and what sanitizers want to know of both. Compiled without -fsanitize=thread.
#include "fiber.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
}
constexpr unsigned kNoOrder = 1;  // switching from fiber to fiber orders nothing
#endif

#ifdef __x86_64__
// Saves the stack pointer and takes another: a tenth of what swapcontext costs, which is two system calls.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
.size emulator_switch,.-emulator_switch
)");
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 << 10;

Fiber* running;
std::vector<char*> stacks;  // that were used, and are free

#ifdef __x86_64__
void* scheduler_stack;
#else
ucontext_t scheduler_context;
#endif
#ifdef EMULATOR_ASAN
void* scheduler_asan;
const void* scheduler_bottom;
size_t scheduler_size;
#endif
#ifdef EMULATOR_TSAN
void* scheduler_tsan;
#endif

char* new_stack() {
  if (stacks.empty()) {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    stacks.push_back(static_cast<char*>(p));
  }
  char* stack = stacks.back();
  stacks.pop_back();
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
  return stack;
}

}  // namespace

Fiber::Fiber(const std::function<void()>& body) : body_(body), stack_(new_stack()) {
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, main, 0);
#endif
#ifdef EMULATOR_TSAN
  scheduler_tsan = __tsan_get_current_fiber();
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef EMULATOR_TSAN
  munmap(stack_, kStackBytes);  // shadow memory would remember who used it
  __tsan_destroy_fiber(tsan_);
#else
  stacks.push_back(stack_);
#endif
}

void Fiber::main() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  running->body_();
  running->ended_ = true;
  running->leave();
  std::abort();
}

void Fiber::resume() {
  running = this;
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&scheduler_asan, stack_, kStackBytes);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(tsan_, kNoOrder);
#endif
#ifdef __x86_64__
  emulator_switch(&scheduler_stack, stack_pointer_);
#else
  swapcontext(&scheduler_context, &context_);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(ended_ ? nullptr : &asan_, scheduler_bottom, scheduler_size);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
#endif
#ifdef __x86_64__
  emulator_switch(&stack_pointer_, scheduler_stack);
#else
  swapcontext(&context_, &scheduler_context);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(asan_, &scheduler_bottom, &scheduler_size);
#endif
}

#ifdef EMULATOR_TSAN
void Fiber::happens_before(void* tag) {
  __tsan_switch_to_fiber(tsan_, kNoOrder);
  emulator::happens_before(tag);
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
}
void Fiber::happens_after(void* tag) {
  __tsan_switch_to_fiber(tsan_, kNoOrder);
  emulator::happens_after(tag);
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
}
#else
void Fiber::happens_before(void*) {}
void Fiber::happens_after(void*) {}
#endif

}  // namespace emulator
