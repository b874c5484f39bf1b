// What of libcurl VMFence needs, opened when a program runs: building needs none of its headers, and who sends nothing to a web service does not need it.
#ifndef VMFENCE_CCURL_H
#define VMFENCE_CCURL_H

#include <stddef.h>

struct vmfence_post {
  // http or https.
  const char *url;
  // Lines `NAME: VALUE`, each with a line feed behind it.
  const char *headers;
  const void *body;
  size_t length;
  // In milliseconds: how long nothing may move, and how long all of it may take.
  long silence;
  long limit;
};

struct vmfence_answer {
  // Of the answer, from 200 on; 0 when there is none.
  long status;
  // Why there is none.
  char problem[256];
};

// Sends a POST, and waits for the head of the answer; its body is not read, and redirects are not followed. Safe from any thread.
struct vmfence_answer vmfence_send_post(const struct vmfence_post *post);

#endif
