// libxenstore (libxenstore.so.4, xenstore.h). What it returns is its own memory, of any length: it is copied within the caller's limits
// and freed here.
#include "include/CXen.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WATCH_PATH 0

#define PERMISSION_NONE 0
#define PERMISSION_READ 1

// How often a transaction that another one crossed is tried.
#define ATTEMPTS 8

// struct xs_permissions of xenstore_lib.h.
struct permission {
  unsigned int domid;
  unsigned int permission;
};

struct vmfence_xenstore {
  void *library;
  void *handle;
  void (*close)(void *);
  int (*fileno)(void *);
  void *(*read)(void *, uint32_t, const char *, unsigned int *);
  char **(*directory)(void *, uint32_t, const char *, unsigned int *);
  bool (*write)(void *, uint32_t, const char *, const void *, unsigned int);
  bool (*permit)(void *, uint32_t, const char *, struct permission *, unsigned int);
  uint32_t (*begin)(void *);
  bool (*end)(void *, uint32_t, bool);
  bool (*watch)(void *, const char *, const char *);
  char **(*check)(void *);
};

void vmfence_xenstore_close(struct vmfence_xenstore *store) {
  if (store == NULL) return;
  if (store->handle != NULL) store->close(store->handle);
  if (store->library != NULL) dlclose(store->library);
  free(store);
}

// By itself xs_open falls back to the kernel's way to xenstored when its socket does not answer, and no flag keeps it from that. There a question waits for
// ever when xenstored is gone, in a system call that not even a signal ends. That way is right only on a host whose xenstored runs in a domain of its own,
// where there is no socket: where there is one, it is named to libxenstore as both ways. Before `main`, since the environment may not change beside
// threads that read it (setenv(3)); a name that was given from outside stays.
__attribute__((constructor)) static void keep_to_socket(void) {
  static const char usual[] = "/var/run/xenstored/socket";
  if (access(usual, F_OK) == 0) setenv("XENSTORED_PATH", usual, 0);
}

struct vmfence_xenstore *vmfence_xenstore_open(int *error) {
  struct vmfence_xenstore *store = calloc(1, sizeof *store);
  if (store == NULL) abort();
  *error = ELIBACC;
  store->library = dlopen("libxenstore.so.4", RTLD_NOW | RTLD_LOCAL);
  if (store->library == NULL) goto fail;
  void *(*open)(unsigned long) = dlsym(store->library, "xs_open");
  store->close = dlsym(store->library, "xs_close");
  store->fileno = dlsym(store->library, "xs_fileno");
  store->read = dlsym(store->library, "xs_read");
  store->directory = dlsym(store->library, "xs_directory");
  store->write = dlsym(store->library, "xs_write");
  store->permit = dlsym(store->library, "xs_set_permissions");
  store->begin = dlsym(store->library, "xs_transaction_start");
  store->end = dlsym(store->library, "xs_transaction_end");
  store->watch = dlsym(store->library, "xs_watch");
  store->check = dlsym(store->library, "xs_check_watch");
  if (!open || !store->close || !store->fileno || !store->read || !store->directory || !store->write || !store->permit ||
      !store->begin || !store->end || !store->watch || !store->check)
    goto fail;
  errno = 0;
  store->handle = open(0);
  if (store->handle == NULL) {
    *error = errno ? errno : ENOENT;
    goto fail;
  }
  *error = 0;
  return store;
fail:
  vmfence_xenstore_close(store);
  return NULL;
}

int vmfence_xenstore_descriptor(struct vmfence_xenstore *store) { return store->fileno(store->handle); }

static int failure(void) { return errno ? -errno : -EIO; }

ssize_t vmfence_xenstore_read(struct vmfence_xenstore *store, const char *path, void *bytes, size_t capacity) {
  unsigned int length = 0;
  errno = 0;
  void *value = store->read(store->handle, 0, path, &length);
  if (value == NULL) return failure();
  memcpy(bytes, value, length < capacity ? length : capacity);
  free(value);
  return (ssize_t)length;
}

ssize_t vmfence_xenstore_list(
  struct vmfence_xenstore *store, const char *path, char *names, size_t capacity, uint32_t *count) {
  unsigned int number = 0;
  size_t used = 0;
  errno = 0;
  char **entries = store->directory(store->handle, 0, path, &number);
  if (entries == NULL) return failure();
  *count = number;
  for (unsigned int i = 0; i < number; i++) {
    size_t length = strlen(entries[i]) + 1;
    if (length > capacity - used) break;
    memcpy(names + used, entries[i], length);
    used += length;
  }
  free(entries);
  return (ssize_t)used;
}

int vmfence_xenstore_watch(struct vmfence_xenstore *store, const char *path, const char *token) {
  errno = 0;
  return store->watch(store->handle, path, token) ? 0 : failure();
}

ssize_t vmfence_xenstore_event(struct vmfence_xenstore *store, char *path, size_t capacity) {
  errno = 0;
  char **event = store->check(store->handle);
  if (event == NULL) return failure();
  size_t length = strlen(event[WATCH_PATH]);
  memcpy(path, event[WATCH_PATH], length < capacity ? length : capacity);
  free(event);
  return (ssize_t)length;
}

static bool is_there(struct vmfence_xenstore *store, uint32_t transaction, const char *path) {
  unsigned int length = 0;
  errno = 0;
  void *value = store->read(store->handle, transaction, path, &length);
  free(value);
  return value != NULL;
}

int vmfence_xenstore_tell(
  struct vmfence_xenstore *store, const char *witness, const char *path, const void *bytes, uint32_t count, uint32_t domid) {
  // The first names the owner, and what everybody else may do.
  struct permission permissions[] = {{0, PERMISSION_NONE}, {domid, PERMISSION_READ}};
  for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
    errno = 0;
    uint32_t transaction = store->begin(store->handle);
    if (transaction == 0) return failure();
    bool is_done = is_there(store, transaction, witness);
    if (is_done) {
      bool is_new = !is_there(store, transaction, path);
      errno = 0;
      is_done = store->write(store->handle, transaction, path, bytes, count) &&
        (!is_new || store->permit(store->handle, transaction, path, permissions, 2));
    }
    int result = is_done ? 0 : failure();
    errno = 0;
    if (store->end(store->handle, transaction, !is_done) || !is_done) return result;
    // Somebody changed one of the entries meanwhile.
    if (errno != EAGAIN) return failure();
  }
  return -EAGAIN;
}
