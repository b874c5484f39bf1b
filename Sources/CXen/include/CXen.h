// What of Xen's libraries VMFence needs, opened when a program runs: one build serves hosts with several Xen releases and hosts without
// Xen, and building needs none of Xen's headers.
//
// Functions that return a number return 0 or a count, or the negative of an errno value. A handle is used by one thread at a time.
#ifndef VMFENCE_CXEN_H
#define VMFENCE_CXEN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/types.h>

// MARK: libxenctrl, whose ABI changes with every release of Xen (Control.c)

// Whether the layouts of a release are known.
int vmfence_xen_knows(uint32_t major, uint32_t minor);
// The releases that are known, as text.
const char *vmfence_xen_known_releases(void);

struct vmfence_xen;

enum vmfence_xen_problem {
  VMFENCE_XEN_OPENED = 0,
  // The release is not known: `major` and `minor` name it.
  VMFENCE_XEN_UNKNOWN_RELEASE = 1,
  // Its library is not installed, or lacks a function.
  VMFENCE_XEN_NO_LIBRARY = 2,
  // The library cannot reach the hypervisor: `error` is an errno value.
  VMFENCE_XEN_UNREACHABLE = 3,
};

struct vmfence_xen_opening {
  struct vmfence_xen *xen;
  enum vmfence_xen_problem problem;
  int error;
  uint32_t major, minor;
};

// Opens libxenctrl for release `major`.`minor`, and asks the hypervisor whether that is its release.
struct vmfence_xen_opening vmfence_xen_open(uint32_t major, uint32_t minor);
void vmfence_xen_close(struct vmfence_xen *xen);

// Of xc_domaininfo_t (xen/include/public/domctl.h) what is used.
struct vmfence_xen_domain {
  uint8_t uuid[16];
  // Nanoseconds of all its processors together.
  uint64_t cpu_time;
  uint32_t domid;
  // XEN_DOMINF_*; the reason of a shutdown from bit 16 on.
  uint32_t flags;
};

// Domains from number `first` on, at most `capacity` and at most 1,024, by rising numbers (xc_domain_getinfolist).
int vmfence_xen_list(
  struct vmfence_xen *xen, uint32_t first, struct vmfence_xen_domain *domains, uint32_t capacity);
int vmfence_xen_pause(struct vmfence_xen *xen, uint32_t domid);
int vmfence_xen_unpause(struct vmfence_xen *xen, uint32_t domid);
// The hypervisor stops the domain at once, with the reason `poweroff` (xc_domain_shutdown).
int vmfence_xen_power_off(struct vmfence_xen *xen, uint32_t domid);
int vmfence_xen_destroy(struct vmfence_xen *xen, uint32_t domid);

// MARK: libxenstore, whose ABI is stable (Store.c)

struct vmfence_xenstore;

// Connects to xenstored. NULL with `error` set to an errno value; ELIBACC when there is no libxenstore.
struct vmfence_xenstore *vmfence_xenstore_open(int *error);
void vmfence_xenstore_close(struct vmfence_xenstore *store);
// Readable when there are events.
int vmfence_xenstore_descriptor(struct vmfence_xenstore *store);
// Copies the first `capacity` bytes of a value; returns the value's whole length.
ssize_t vmfence_xenstore_read(struct vmfence_xenstore *store, const char *path, void *bytes, size_t capacity);
// The names below `path`, each with a zero after it, as many as fit into `capacity`; `*count` gets how many there are. Returns the bytes used.
ssize_t vmfence_xenstore_list(
  struct vmfence_xenstore *store, const char *path, char *names, size_t capacity, uint32_t *count);
int vmfence_xenstore_watch(struct vmfence_xenstore *store, const char *path, const char *token);
// The path of the next event, as much as fits, without its zero; returns its whole length, or -EAGAIN when there is none.
ssize_t vmfence_xenstore_event(struct vmfence_xenstore *store, char *path, size_t capacity);
// Writes an entry if there is one at `witness`, in one transaction: what is removed meanwhile does not come back. An entry that was not there is for domain
// `domid` to read, and Dom0's alone to write. -ENOENT when there is no witness.
int vmfence_xenstore_tell(
  struct vmfence_xenstore *store, const char *witness, const char *path, const void *bytes, uint32_t count, uint32_t domid);

// MARK: libxengnttab and libxenevtchn, whose ABIs are stable (Channel.c)

struct vmfence_grants;

// NULL with `error` set to an errno value; ELIBACC when there is no libxengnttab.
struct vmfence_grants *vmfence_grants_open(int *error);
// Pages that are mapped still are unmapped.
void vmfence_grants_close(struct vmfence_grants *grants);
// Maps the page that domain `domid` granted under `reference`, to be read and written.
int vmfence_grants_map(struct vmfence_grants *grants, uint32_t domid, uint32_t reference, void **page);
int vmfence_grants_unmap(struct vmfence_grants *grants, void *page);

struct vmfence_events;

// NULL with `error` set to an errno value; ELIBACC when there is no libxenevtchn.
struct vmfence_events *vmfence_events_open(int *error);
void vmfence_events_close(struct vmfence_events *events);
// Readable when `vmfence_events_take` has something, which it waits for otherwise.
int vmfence_events_descriptor(struct vmfence_events *events);
// A port of this side's at the other end of port `port` of domain `domid`.
int vmfence_events_bind(struct vmfence_events *events, uint32_t domid, uint32_t port);
int vmfence_events_unbind(struct vmfence_events *events, uint32_t port);
int vmfence_events_notify(struct vmfence_events *events, uint32_t port);
// The next port of this side's that was rung; it stays silent until it is unmasked.
int vmfence_events_take(struct vmfence_events *events);
int vmfence_events_unmask(struct vmfence_events *events, uint32_t port);

// Names the calling thread, for `top` and `ps`: 15 characters at the most.
static inline void vmfence_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

#endif
