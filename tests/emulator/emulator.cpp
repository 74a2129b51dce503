// The scheduler of emulator.h: blocks that start and end, threads that wait for one another, and who is next. Compiled
// without -fsanitize=thread, which it tells by hand what orders what.
#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "fiber.h"

#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

enum class State { kReady, kAtBarrier, kInCollective, kWaiting };

struct PendingCopy {
  void* to;
  uint4 value;
};

struct Block;
struct GpuThread {
  Thread thread;
  Block* block;
  int lane, warp;
  Fiber fiber;
  State state = State::kReady;
  bool barrier_result = false;
  uint64_t stores_seen = 0;  // when it last waited
  Operands operands;
  std::vector<PendingCopy> copies;
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

// Dynamic shared memory. Its end is the kernel's: AddressSanitizer sees a step beyond it.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_((bytes + 127) / 128 * 128) {
    data = static_cast<unsigned char*>(std::aligned_alloc(128, bytes_));
    std::memset(data, 0xCD, bytes);
#ifdef EMULATOR_ASAN
    __asan_poison_memory_region(data + bytes, bytes_ - bytes);
#endif
  }
  ~SharedMemory() {
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(data, bytes_);
#endif
    std::free(data);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  unsigned char* data;

 private:
  size_t bytes_;
};

struct Block {
  std::vector<Warp> warps;
  std::optional<SharedMemory> shared;
  std::vector<std::unique_ptr<GpuThread>> threads;
  unsigned live, at_barrier = 0;
  bool reduces = false, reduced = false;
  char tag;

  void release_memory() {
    threads.clear();
    shared.reset();
  }
};

Launch launch;
GpuThread* self;
std::vector<GpuThread*> ready, waiting;
std::string error;
bool failed;
uint64_t random_state, stores;
char started, ended;  // what ThreadSanitizer knows a launch's begin and end by

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void resume(GpuThread* t) {
  self = t;
  current = &t->thread;
  t->fiber.resume();
}

void sleep_as(State state) {
  self->state = state;
  self->fiber.leave();
}

void wake(GpuThread* t) {
  t->state = State::kReady;
  ready.push_back(t);
}

std::unique_ptr<Block> start_block(unsigned index, const std::function<void()>& kernel) {
  auto block = std::make_unique<Block>();
  block->live = launch.block;
  block->warps.resize((launch.block + 31) / 32);
  block->shared.emplace(launch.shared_bytes);
  for (unsigned i = 0; i < launch.block; ++i) {
    const Thread thread{{i}, {index}, {launch.grid}, {launch.block}, block->shared->data};
    const int lane = static_cast<int>(i % 32), warp = static_cast<int>(i / 32);
    block->threads.emplace_back(new GpuThread{thread, block.get(), lane, warp, Fiber(kernel)});
    block->threads.back()->fiber.happens_after(&started);
    wake(block->threads.back().get());
  }
  return block;
}

std::string deadlock(const std::vector<std::unique_ptr<Block>>& blocks, unsigned not_started) {
  unsigned held = 0;
  for (const auto& block : blocks)
    for (const auto& t : block->threads) held += t->state == State::kAtBarrier || t->state == State::kInCollective;
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
  for (GpuThread* t : waiting) wake(t);
  waiting.clear();
}

void wait() {
  GpuThread* t = self;
  if (t->stores_seen == stores) {
    waiting.push_back(t);
    sleep_as(State::kWaiting);
  } else {
    ready.push_back(t);
    sleep_as(State::kReady);
  }
  t->stores_seen = stores;
}

bool barrier(bool value, bool reduces) {
  GpuThread* t = self;
  Block& block = *t->block;
  happens_before(&block.tag);
  if (block.at_barrier == 0) block.reduces = reduces, block.reduced = false;
  if (block.reduces != reduces) fail("threads of a block met at different barriers");
  block.reduced |= value;
  if (++block.at_barrier < block.live) {
    sleep_as(State::kAtBarrier);
  } else {
    block.at_barrier = 0;
    for (auto& other : block.threads) {
      if (other->state != State::kAtBarrier) continue;
      other->barrier_result = block.reduced;
      wake(other.get());
    }
    t->barrier_result = block.reduced;
  }
  happens_after(&block.tag);
  return t->barrier_result;
}

uint32_t collective(Collective kind, uint32_t mask, uint32_t value, int argument) {
  GpuThread* t = self;
  Warp& warp = t->block->warps[t->warp];
  if (kind == Collective::kSync) happens_before(&warp.tag);
  Meeting& meeting = warp.meeting[warp.current];
  const uint32_t bit = 1u << t->lane;
  if (meeting.arrived == 0) meeting.mask = mask, meeting.kind = kind;
  if (meeting.mask != mask || meeting.kind != kind || (mask & bit) == 0 || (meeting.arrived & bit) != 0)
    fail("diverged warp collective");
  meeting.value[t->lane] = value;
  if (kind == Collective::kMultiply) std::copy_n(t->operands, std::size(t->operands), meeting.operands[t->lane]);
  meeting.arrived |= bit;
  if (meeting.arrived == mask) {
    warp.current = 1 - warp.current;
    warp.meeting[warp.current].arrived = 0;
    for (int i = 0; i < 32; ++i) {
      if ((mask >> i & 1) == 0 || i == t->lane) continue;
      wake(t->block->threads[t->warp * 32 + i].get());
    }
  } else {
    sleep_as(State::kInCollective);
  }
  if (kind == Collective::kSync) happens_after(&warp.tag);
  uint32_t ballot = 0;
  switch (kind) {
    case Collective::kShuffleXor:
      return meeting.value[(t->lane ^ argument) & 31];
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
  happens_before(&started);
  const std::vector<unsigned> order = start_order();
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned next = 0, running = 0;
  while (!failed) {
    for (; running < launch.resident && next < launch.grid; ++running)
      blocks.push_back(start_block(order[next++], kernel));
    if (ready.empty()) {
      if (running > 0) error = deadlock(blocks, launch.grid - next);
      break;
    }
    std::swap(ready[draw() % ready.size()], ready.back());
    GpuThread* t = ready.back();
    ready.pop_back();
    resume(t);
    if (!t->fiber.ended()) continue;
    Block& block = *t->block;
    --block.live;
    if (block.live > 0 && block.at_barrier == block.live) {
      error = "a thread ended while the others of its block wait at a barrier";
      break;
    }
    if (block.live > 0) continue;
    --running;
    for (auto& other : block.threads) other->fiber.happens_before(&ended);
    if (!kOrderIsWatched)
      block.release_memory();  // else kept: nothing orders the end of a block before another's begin
  }
  happens_after(&ended);
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
