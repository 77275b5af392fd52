// What compilers of our day expect of the system's libraries, for systems of manylinux_2_28: glibc 2.28, libstdc++ of
// GCC 8. All of it is hidden: other libraries of the process see nothing of it.

#include <new>
#include <sstream>

#if defined(__linux__) && defined(__GLIBCXX__)

#define HIDDEN __attribute__((visibility("hidden")))

// glibc 2.32: true as long as no thread was started, and reference counts of a shared_ptr may do without atomics. Never
// true here, because torch has threads.
extern "C" {
HIDDEN extern char no_single_thread __asm__("__libc_single_threaded");
char no_single_thread = 0;
}

// GCC 11: what std::allocator calls, std::__throw_bad_array_new_length() by its symbol. Weak, beside a compiler's own.
#define SYMBOL "_ZSt28__throw_bad_array_new_lengthv"
[[noreturn]] HIDDEN __attribute__((weak)) void throw_bad_array_new_length() __asm__(SYMBOL);
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// GCC 9: streams of strings made without arguments.
template HIDDEN std::basic_ostringstream<char>::basic_ostringstream();
template HIDDEN std::basic_istringstream<char>::basic_istringstream();
template HIDDEN std::basic_stringstream<char>::basic_stringstream();

#endif
