#include <maxminddb.h>
#include <sys/syscall.h>
#include <unistd.h>

// memfd_create(2), which Swift's Glibc does not have. 1 is MFD_CLOEXEC.
static inline int vmfence_mmdb_memory(void) { return (int)syscall(SYS_memfd_create, "vmfence-countries", 1u); }

// A path of C strings is easier to write here than in Swift.
static inline int vmfence_mmdb_country(const MMDB_s *database, uint32_t offset, MMDB_entry_data_s *data) {
  const char *const path[] = {"country", "iso_code", NULL};
  MMDB_entry_s entry = {.mmdb = database, .offset = offset};
  return MMDB_aget_value(&entry, data, path);
}
