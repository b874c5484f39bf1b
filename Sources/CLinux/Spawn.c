#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The lowest number that such a process does not use itself: the sources are moved from here on, so that no target overwrites one.
enum { FIRST_TARGET = 3, FIRST_SOURCE = 16 };

static int add_actions(posix_spawn_file_actions_t *actions, const int *sources, int number) {
  int error = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0);
  if (error == 0) error = posix_spawn_file_actions_adddup2(actions, 0, 1);
  for (int i = 0; i < number && error == 0; i++)
    error = posix_spawn_file_actions_adddup2(actions, sources[i], FIRST_TARGET + i);
  if (error == 0)
    error = posix_spawn_file_actions_addclosefrom_np(actions, FIRST_TARGET + number);
  return error;
}

static int add_attributes(posix_spawnattr_t *attributes) {
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  int error = posix_spawnattr_setflags(
      attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  if (error == 0) error = posix_spawnattr_setpgroup(attributes, 0);
  if (error == 0) error = posix_spawnattr_setsigmask(attributes, &none);
  if (error == 0) error = posix_spawnattr_setsigdefault(attributes, &all);
  return error;
}

static int spawn(const char *path, const int *sources, int number, int *pid) {
  // Nothing of the caller's environment goes to it but where its libraries are. A crash must end it at once, not
  // start a backtracer.
  char libraries[4096] = "";
  const char *search = getenv("LD_LIBRARY_PATH");
  if (search != NULL) snprintf(libraries, sizeof libraries, "LD_LIBRARY_PATH=%s", search);
  char backtrace[] = "SWIFT_BACKTRACE=enable=no";
  char *environment[] = {backtrace, search == NULL ? NULL : libraries, NULL};
  char *arguments[] = {(char *)path, NULL};

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  int error = posix_spawn_file_actions_init(&actions);
  if (error != 0) return error;
  error = posix_spawnattr_init(&attributes);
  if (error == 0) {
    error = add_actions(&actions, sources, number);
    if (error == 0) error = add_attributes(&attributes);
    if (error == 0) error = posix_spawn(pid, path, &actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
  }
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

int vmfence_spawn(const char *path, const int *descriptors, int number, int *pid) {
  int sources[VMFENCE_SPAWN_DESCRIPTORS];
  int count = 0;
  int error = number < 0 || number > VMFENCE_SPAWN_DESCRIPTORS ? EINVAL : 0;
  while (error == 0 && count < number) {
    sources[count] = fcntl(descriptors[count], F_DUPFD_CLOEXEC, FIRST_SOURCE);
    if (sources[count] == -1)
      error = errno;
    else
      count++;
  }
  if (error == 0) error = spawn(path, sources, number, pid);
  while (count > 0) close(sources[--count]);
  return error;
}
