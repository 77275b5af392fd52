// What the checks of csrc/threads in this folder have in common.
#pragma once
#include <cstdio>
#include <cstdlib>

static void check(bool good, int line) {
  if (good) return;
  std::printf("line %d\n", line);
  std::exit(1);
}
#define CHECK(condition) check(condition, __LINE__)
