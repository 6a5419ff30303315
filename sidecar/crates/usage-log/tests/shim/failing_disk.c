// A disk that fails, for a process that is started with LD_PRELOAD: what the file named by FAILING_DISK says.
//
// Its words are `CALL ERRNO TIMES`; calls of that name fail so often, 0 = until the file says something else. An empty
// file is a disk that is whole. Failed writes write nothing; failed syncs sync nothing.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char known[64];
static int failed;

static int told_to_fail(const char *call) {
  const char *path = getenv("FAILING_DISK");
  char words[64] = {0}, name[32] = {0};
  int number = 0, times = 0, fails = 0;
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return 0;
  ssize_t count = read(file, words, sizeof words - 1);
  close(file);
  if (count <= 0 || sscanf(words, "%31s %d %d", name, &number, &times) != 3) return 0;
  pthread_mutex_lock(&lock);
  if (strcmp(words, known) != 0) {
    memcpy(known, words, sizeof known);
    failed = 0;
  }
  if (strcmp(name, call) == 0 && (times == 0 || failed < times)) {
    failed++;
    fails = number;
  }
  pthread_mutex_unlock(&lock);
  errno = fails;
  return fails;
}

int fdatasync(int file) {
  int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
  return told_to_fail("fdatasync") ? -1 : real(file);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
  ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
  return told_to_fail("pwrite64") ? -1 : real(file, bytes, count, at);
}
