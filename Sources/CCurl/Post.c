// libcurl's easy interface (curl_easy_setopt(3)), whose ABI has been stable since 7.16.0. The numbers are those of curl/curl.h.
#include "include/CCurl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GLOBAL_ALL 3L

#define OPTION_LOW_SPEED_LIMIT 19
#define OPTION_LOW_SPEED_TIME 20
#define OPTION_FOLLOWLOCATION 52
#define OPTION_HTTP_VERSION 84
#define OPTION_NOSIGNAL 99
#define OPTION_TIMEOUT_MS 155
#define OPTION_CONNECTTIMEOUT_MS 156
#define OPTION_PROTOCOLS 181
#define OPTION_SUPPRESS_CONNECT_HEADERS 265
#define OPTION_WRITEDATA 10001
#define OPTION_URL 10002
#define OPTION_ERRORBUFFER 10010
#define OPTION_POSTFIELDS 10015
#define OPTION_HTTPHEADER 10023
#define OPTION_HEADERDATA 10029
#define OPTION_WRITEFUNCTION 20011
#define OPTION_HEADERFUNCTION 20079
#define OPTION_POSTFIELDSIZE_LARGE 30120

#define INFO_RESPONSE_CODE 0x200002

#define HTTP_VERSION_1_1 2L
#define PROTOCOLS_HTTP_AND_HTTPS 3L
#define ERROR_SIZE 256

// Of all heads of an answer together, in bytes.
#define HEAD_LIMIT (256 << 10)

static struct {
  void *library;
  int (*global_init)(long);
  void *(*init)(void);
  void (*cleanup)(void *);
  int (*setopt)(void *, int, ...);
  int (*getinfo)(void *, int, ...);
  int (*perform)(void *);
  const char *(*strerror)(int);
  void *(*append)(void *, const char *);
  void (*free_all)(void *);
} curl;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_library(void) {
  void *library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) library = dlopen("libcurl-gnutls.so.4", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return;
  curl.global_init = dlsym(library, "curl_global_init");
  curl.init = dlsym(library, "curl_easy_init");
  curl.cleanup = dlsym(library, "curl_easy_cleanup");
  curl.setopt = dlsym(library, "curl_easy_setopt");
  curl.getinfo = dlsym(library, "curl_easy_getinfo");
  curl.perform = dlsym(library, "curl_easy_perform");
  curl.strerror = dlsym(library, "curl_easy_strerror");
  curl.append = dlsym(library, "curl_slist_append");
  curl.free_all = dlsym(library, "curl_slist_free_all");
  // Once it has begun, it stays.
  if (curl.global_init && curl.init && curl.cleanup && curl.setopt && curl.getinfo && curl.perform && curl.strerror && curl.append &&
      curl.free_all && curl.global_init(GLOBAL_ALL) == 0)
    curl.library = library;
}

struct head {
  void *handle;
  size_t bytes;
  long status;
};

// A line of a head. The answer is there with the empty line that ends a head which is none of an interim answer (RFC 9110, section 15.2): that ends the
// transfer.
static size_t take_line(const char *line, size_t size, size_t count, void *data) {
  struct head *head = data;
  size_t length = size * count;
  head->bytes += length;
  if (head->bytes > HEAD_LIMIT) return 0;
  int is_end = (length == 1 && line[0] == '\n') || (length == 2 && memcmp(line, "\r\n", 2) == 0);
  if (!is_end) return length;
  long status = 0;
  curl.getinfo(head->handle, INFO_RESPONSE_CODE, &status);
  if (status < 200) return length;
  head->status = status;
  return 0;
}

static size_t take_nothing(const char *bytes, size_t size, size_t count, void *data) {
  (void)bytes, (void)size, (void)count, (void)data;
  return 0;
}

// Nil also when there is no memory.
static void *header_list(const char *headers) {
  // No wait for an interim answer before the body is sent.
  void *list = curl.append(NULL, "Expect:");
  while (*headers != 0) {
    size_t length = strcspn(headers, "\n");
    char *line = strndup(headers, length);
    void *longer = line != NULL && list != NULL ? curl.append(list, line) : NULL;
    free(line);
    if (longer == NULL) {
      curl.free_all(list);
      return NULL;
    }
    list = longer;
    headers += length + (headers[length] == '\n');
  }
  return list;
}

// As libcurl does it where signals are allowed: what TLS writes may raise SIGPIPE.
static int perform(void *handle) {
  sigset_t pipe, before, pending;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  sigpending(&pending);
  int was_pending = sigismember(&pending, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, &before);
  int result = curl.perform(handle);
  struct timespec now = {0, 0};
  if (!was_pending) while (sigtimedwait(&pipe, NULL, &now) == SIGPIPE) {}
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return result;
}

struct vmfence_answer vmfence_send_post(const struct vmfence_post *post) {
  struct vmfence_answer answer = {0, ""};
  pthread_once(&once, open_library);
  if (curl.library == NULL) {
    snprintf(answer.problem, sizeof answer.problem, "libcurl.so.4 cannot be opened: install libcurl4");
    return answer;
  }
  char error[ERROR_SIZE] = "";
  void *handle = curl.init();
  void *headers = header_list(post->headers);
  if (handle == NULL || headers == NULL) {
    snprintf(answer.problem, sizeof answer.problem, "no memory");
    goto end;
  }
  struct head head = {handle, 0, 0};
  int refused = 0;
  refused |= curl.setopt(handle, OPTION_URL, post->url);
  refused |= curl.setopt(handle, OPTION_PROTOCOLS, PROTOCOLS_HTTP_AND_HTTPS);
  refused |= curl.setopt(handle, OPTION_FOLLOWLOCATION, 0L);
  refused |= curl.setopt(handle, OPTION_HTTP_VERSION, HTTP_VERSION_1_1);
  refused |= curl.setopt(handle, OPTION_HTTPHEADER, headers);
  refused |= curl.setopt(handle, OPTION_POSTFIELDS, post->body);
  refused |= curl.setopt(handle, OPTION_POSTFIELDSIZE_LARGE, (long long)post->length);
  refused |= curl.setopt(handle, OPTION_NOSIGNAL, 1L);
  refused |= curl.setopt(handle, OPTION_TIMEOUT_MS, post->limit);
  refused |= curl.setopt(handle, OPTION_CONNECTTIMEOUT_MS, post->silence);
  refused |= curl.setopt(handle, OPTION_LOW_SPEED_LIMIT, 1L);
  refused |= curl.setopt(handle, OPTION_LOW_SPEED_TIME, (post->silence + 999) / 1000);
  refused |= curl.setopt(handle, OPTION_SUPPRESS_CONNECT_HEADERS, 1L);
  refused |= curl.setopt(handle, OPTION_HEADERFUNCTION, take_line);
  refused |= curl.setopt(handle, OPTION_HEADERDATA, &head);
  refused |= curl.setopt(handle, OPTION_WRITEFUNCTION, take_nothing);
  refused |= curl.setopt(handle, OPTION_WRITEDATA, NULL);
  refused |= curl.setopt(handle, OPTION_ERRORBUFFER, error);
  if (refused) {
    snprintf(answer.problem, sizeof answer.problem, "this libcurl lacks an option: 7.54 or later is needed");
    goto end;
  }
  int result = perform(handle);
  answer.status = head.status;
  if (head.status == 0)
    snprintf(answer.problem, sizeof answer.problem, "%s", head.bytes > HEAD_LIMIT ? "the head of its answer does not end"
             : error[0] ? error : result ? curl.strerror(result) : "no status");
end:
  if (handle != NULL) curl.cleanup(handle);
  if (headers != NULL) curl.free_all(headers);
  return answer;
}
