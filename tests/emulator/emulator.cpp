// The scheduler of emulator.h. Compiled without -fsanitize=thread, which it tells by hand what orders what.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
void __tsan_acquire(void*);
void __tsan_release(void*);
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
#else
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 << 10;

enum class State { kReady, kAtBarrier, kInCollective, kWaiting, kDone };

struct PendingCopy {
  void* to;
  uint4 value;
};

struct Block;
struct Fiber {
  Thread thread;
  Block* block;
  int lane, warp;
  State state = State::kReady;
  char* stack = nullptr;
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  bool barrier_result = false;
  uint64_t stores_seen = 0;  // when it last waited
  Operands operands;
  std::vector<PendingCopy> copies;
  void* asan = nullptr;
  void* tsan = nullptr;
};

// Two collectives can be under way in a warp: one whose results are being taken, and the next.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Collective kind = Collective::kSync;
  uint32_t value[32];
  Operands operands[32];
};
struct Warp {
  Meeting meeting[2];
  int current = 0;
  char tag;  // what ThreadSanitizer knows a warp's synchronisation by
};

struct Block {
  unsigned index;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  unsigned live, at_barrier = 0;
  bool reduces = false, reduced = false;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  char tag;
};

Launch launch;
const std::function<void()>* body;
Fiber* self;
std::vector<Fiber*> ready, waiting;
std::vector<char*> stacks;
std::string error;
bool failed;
uint64_t random_state, stores;

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
char started, ended;
#endif

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void to_scheduler() {
  Fiber* f = self;
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(f->state == State::kDone ? nullptr : &f->asan, scheduler_bottom, scheduler_size);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
#endif
#ifdef __x86_64__
  emulator_switch(&f->stack_pointer, scheduler_stack);
#else
  swapcontext(&f->context, &scheduler_context);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(f->asan, &scheduler_bottom, &scheduler_size);
#endif
}

void fiber_main() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  (*body)();
  self->state = State::kDone;
  to_scheduler();
  std::abort();
}

void resume(Fiber* f) {
  self = f;
  current = &f->thread;
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&scheduler_asan, f->stack, kStackBytes);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(f->tsan, kNoOrder);
#endif
#ifdef __x86_64__
  emulator_switch(&scheduler_stack, f->stack_pointer);
#else
  swapcontext(&scheduler_context, &f->context);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
}

void sleep_as(State state) {
  self->state = state;
  to_scheduler();
}

void wake(Fiber* f) {
  f->state = State::kReady;
  ready.push_back(f);
}

#ifdef EMULATOR_TSAN
// Runs f as the fiber would, for the order of events that ThreadSanitizer keeps.
template <class F>
void as_fiber(Fiber* fiber, F f) {
  __tsan_switch_to_fiber(fiber->tsan, kNoOrder);
  f();
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
}
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

void prepare(Fiber& f) {
  f.stack = new_stack();
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(f.stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
#endif
#ifdef EMULATOR_TSAN
  f.tsan = __tsan_create_fiber(0);
  as_fiber(&f, [] { __tsan_acquire(&started); });
#endif
}

std::unique_ptr<Block> start_block(unsigned index) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->live = launch.block;
  block->warps.resize((launch.block + 31) / 32);
  block->shared_bytes = (launch.shared_bytes + 127) / 128 * 128;
  block->shared = static_cast<unsigned char*>(std::aligned_alloc(128, block->shared_bytes));
  std::memset(block->shared, 0xCD, launch.shared_bytes);
#ifdef EMULATOR_ASAN
  __asan_poison_memory_region(block->shared + launch.shared_bytes, block->shared_bytes - launch.shared_bytes);
#endif
  for (unsigned i = 0; i < launch.block; ++i) {
    auto f = std::make_unique<Fiber>();
    f->thread = {{i}, {index}, {launch.grid}, {launch.block}, block->shared};
    f->block = block.get();
    f->lane = static_cast<int>(i % 32);
    f->warp = static_cast<int>(i / 32);
    prepare(*f);
    wake(f.get());
    block->fibers.push_back(std::move(f));
  }
  return block;
}

void release_memory(Block& block) {
  for (auto& f : block.fibers) {
#ifdef EMULATOR_TSAN
    munmap(f->stack, kStackBytes);  // shadow memory would remember who used it
    __tsan_destroy_fiber(f->tsan);
#else
    stacks.push_back(f->stack);
#endif
  }
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(block.shared, block.shared_bytes);
#endif
  std::free(block.shared);
  block.fibers.clear();
}

std::string deadlock(const std::vector<std::unique_ptr<Block>>& blocks, unsigned not_started) {
  unsigned held = 0;
  for (const auto& block : blocks)
    for (const auto& f : block->fibers) held += f->state == State::kAtBarrier || f->state == State::kInCollective;
  char text[160];
  std::snprintf(text, sizeof text,
                "deadlock: %zu threads wait for a store, %u at a barrier or in a collective, %u blocks "
                "not started",
                waiting.size(), held, not_started);
  return text;
}

std::vector<unsigned> start_order() {
  std::vector<unsigned> order(launch.grid);
  for (unsigned i = 0; i < launch.grid; ++i) order[i] = launch.order == Launch::kDescending ? launch.grid - 1 - i : i;
  if (launch.order == Launch::kRandom)
    for (unsigned i = launch.grid; i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  return order;
}

}  // namespace

Thread* current;

void fail(const char* what) {
  if (error.empty())
    error = std::string(what) + " (block " + std::to_string(self->thread.block.x) + " thread " +
            std::to_string(self->thread.thread.x) + ")";
  failed = true;
  sleep_as(State::kWaiting);
}

void before_atomic() {
  if (draw() % 100 >= launch.yield_percent) return;
  ready.push_back(self);
  sleep_as(State::kReady);
}

void after_store() {
  ++stores;
  for (Fiber* f : waiting) wake(f);
  waiting.clear();
}

void wait() {
  Fiber* f = self;
  if (f->stores_seen == stores) {
    waiting.push_back(f);
    sleep_as(State::kWaiting);
  } else {
    ready.push_back(f);
    sleep_as(State::kReady);
  }
  f->stores_seen = stores;
}

bool barrier(bool value, bool reduces) {
  Fiber* f = self;
  Block& block = *f->block;
#ifdef EMULATOR_TSAN
  __tsan_release(&block.tag);
#endif
  if (block.at_barrier == 0) block.reduces = reduces, block.reduced = false;
  if (block.reduces != reduces) fail("threads of a block met at different barriers");
  block.reduced |= value;
  if (++block.at_barrier < block.live) {
    sleep_as(State::kAtBarrier);
  } else {
    block.at_barrier = 0;
    for (auto& other : block.fibers) {
      if (other->state != State::kAtBarrier) continue;
      other->barrier_result = block.reduced;
      wake(other.get());
    }
    f->barrier_result = block.reduced;
  }
#ifdef EMULATOR_TSAN
  __tsan_acquire(&block.tag);
#endif
  return f->barrier_result;
}

uint32_t collective(Collective kind, uint32_t mask, uint32_t value, int argument) {
  Fiber* f = self;
  Warp& warp = f->block->warps[f->warp];
#ifdef EMULATOR_TSAN
  if (kind == Collective::kSync) __tsan_release(&warp.tag);
#endif
  Meeting& meeting = warp.meeting[warp.current];
  const uint32_t bit = 1u << f->lane;
  if (meeting.arrived == 0) meeting.mask = mask, meeting.kind = kind;
  if (meeting.mask != mask || meeting.kind != kind || (mask & bit) == 0 || (meeting.arrived & bit) != 0)
    fail("diverged warp collective");
  meeting.value[f->lane] = value;
  if (kind == Collective::kMultiply) std::copy_n(f->operands, std::size(f->operands), meeting.operands[f->lane]);
  meeting.arrived |= bit;
  if (meeting.arrived == mask) {
    warp.current = 1 - warp.current;
    warp.meeting[warp.current].arrived = 0;
    for (int i = 0; i < 32; ++i) {
      if ((mask >> i & 1) == 0 || i == f->lane) continue;
      wake(f->block->fibers[f->warp * 32 + i].get());
    }
  } else {
    sleep_as(State::kInCollective);
  }
#ifdef EMULATOR_TSAN
  if (kind == Collective::kSync) __tsan_acquire(&warp.tag);
#endif
  uint32_t ballot = 0;
  switch (kind) {
    case Collective::kShuffleXor:
      return meeting.value[(f->lane ^ argument) & 31];
    case Collective::kShuffle:
      return meeting.value[argument & 31];
    case Collective::kBallot:
      for (int i = 0; i < 32; ++i)
        if ((mask >> i & 1) != 0 && meeting.value[i] != 0) ballot |= 1u << i;
      return ballot;
    case Collective::kMultiply:
      return static_cast<uint32_t>(&meeting - warp.meeting);
    default:
      return 0;
  }
}

const Operands* exchange(const Operands& mine) {
  std::copy_n(mine, std::size(mine), self->operands);
  const uint32_t meeting = collective(Collective::kMultiply, 0xffffffffu, 0, 0);
  return self->block->warps[self->warp].meeting[meeting].operands;
}

std::string run(const Launch& config, const std::function<void()>& kernel) {
  launch = config;
  body = &kernel;
  random_state = (config.seed + 1) * 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < 4; ++i) draw();
  error.clear();
  failed = false;
  stores = 0;
  // Room for all, so that fibers do not allocate what belongs to the scheduler.
  ready.clear();
  ready.reserve(static_cast<size_t>(config.grid) * config.block);
  waiting.clear();
  waiting.reserve(ready.capacity());
#ifdef EMULATOR_TSAN
  scheduler_tsan = __tsan_get_current_fiber();
  __tsan_release(&started);
#endif
  const std::vector<unsigned> order = start_order();
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned next = 0, running = 0;
  while (!failed) {
    for (; running < launch.resident && next < launch.grid; ++running) blocks.push_back(start_block(order[next++]));
    if (ready.empty()) {
      if (running > 0) error = deadlock(blocks, launch.grid - next);
      break;
    }
    std::swap(ready[draw() % ready.size()], ready.back());
    Fiber* f = ready.back();
    ready.pop_back();
    resume(f);
    if (f->state != State::kDone) continue;
    Block& block = *f->block;
    --block.live;
    if (block.live > 0 && block.at_barrier == block.live) {
      error = "a thread ended while the others of its block wait at a barrier";
      break;
    }
    if (block.live > 0) continue;
    --running;
#ifdef EMULATOR_TSAN
    for (auto& fiber : block.fibers) as_fiber(fiber.get(), [] { __tsan_release(&ended); });
#else
    release_memory(block);
#endif
  }
#ifdef EMULATOR_TSAN
  __tsan_acquire(&ended);
#endif
  for (auto& block : blocks)
    if (!block->fibers.empty()) release_memory(*block);
  return error;
}

}  // namespace emulator

namespace affinity_pool::cuda {

void copy_async(void* shared, const void* global) {
  emulator::self->copies.push_back({shared, emulator::load_aligned<uint4>(global)});
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) emulator::fail("misaligned 16-byte copy");
}

void copies_wait() {
  for (const auto& copy : emulator::self->copies) std::memcpy(copy.to, &copy.value, sizeof copy.value);
  emulator::self->copies.clear();
}

}  // namespace affinity_pool::cuda
