// Checks csrc/threads/sharing.h with calls that sleep: when a call goes alone, and when it is shared again.
#include "sharing.h"

#include "check.h"

#include <thread>

using std::chrono::milliseconds;

static void rest(int ms) { std::this_thread::sleep_for(milliseconds(ms)); }

// A call of a kind that takes so long shared, some of it waiting, and so long alone; whether it was done alone.
static bool call(uint64_t kind, int shared, int waiting, int single, bool barrier = false) {
  Sharing sharing(kind, 10);
  const bool alone = Sharing::alone();
  rest(alone ? single : shared);
  if (!alone && !barrier) Sharing::waited(milliseconds(waiting));
  if (!alone && barrier) Sharing::late(milliseconds(waiting));
  return alone;
}

int main() {
  // Nobody waits for long: every call is shared.
  for (int n = 0; n < 6; ++n) CHECK(!call(1, 4, 0, 1));
  // One hiccup does not count.
  CHECK(!call(1, 8, 6, 1)), CHECK(!call(1, 4, 0, 1)), CHECK(!call(1, 4, 0, 1));

  // Waiting for another thread, twice: one is tried alone, and as that was faster, the next ones too.
  CHECK(!call(2, 9, 6, 2)), CHECK(!call(2, 9, 6, 2));
  CHECK(call(2, 9, 6, 2)), CHECK(call(2, 9, 6, 2));
  // Shared again after 20 ms; while it is still slow, that costs one call each time.
  rest(25);
  CHECK(!call(2, 9, 6, 2)), CHECK(call(2, 9, 6, 2));
  // Now for 40 ms; then the others are back, and calls stay shared.
  rest(25), CHECK(call(2, 9, 6, 2)), rest(30);
  for (int n = 0; n < 4; ++n) CHECK(!call(2, 2, 0, 4));

  // Uneven shares that are faster than one thread all the same: tried once, then not for a while.
  CHECK(!call(3, 6, 3, 12)), CHECK(!call(3, 6, 3, 12)), CHECK(call(3, 6, 3, 12));
  for (int n = 0; n < 8; ++n) CHECK(!call(3, 6, 3, 12));

  // Two late calls among many that are not: one is tried alone, which is slower than sharing is on the whole.
  for (int n = 0; n < 4; ++n) CHECK(!call(8, 2, 0, 6));
  CHECK(!call(8, 8, 6, 6)), CHECK(!call(8, 8, 6, 6)), CHECK(call(8, 8, 6, 6));
  for (int n = 0; n < 4; ++n) CHECK(!call(8, 2, 0, 6));

  // A barrier that somebody was late at counts as well; other kinds know nothing of it.
  CHECK(!call(4, 6, 4, 1, true)), CHECK(!call(4, 6, 4, 1, true)), CHECK(call(4, 6, 4, 1, true));
  CHECK(!call(5, 6, 0, 1));
  // Unless it was for a small part of the call.
  for (int n = 0; n < 4; ++n) CHECK(!call(7, 12, 2, 1, true));

  // Calls that have nothing to share learn nothing, and what is outside of a call is never alone.
  for (int n = 0; n < 4; ++n) Sharing(6, 1);
  CHECK(!Sharing::alone());
  std::printf("ok\n");
}
