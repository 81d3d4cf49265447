#ifndef HTTP_H
#define HTTP_H

#include <stddef.h>

/* A connection: a request being read, then an answer being written. */
struct connection {
    int fd;
    long deadline_ms; /* closed when nothing happened until then */
    size_t in_length;
    size_t out_length;
    size_t out_sent;
    int close_after;
    char in[8192];
    char out[8192];
};

/* Answers every complete request in `in` that `out` has room for. Returns -1 if the connection
 * must be closed at once, 0 if more bytes are wanted, 1 if there is something to write. */
int http_answer(struct connection *c, int stopping);

/* Appends a whole response; -1 if it does not fit. */
int http_respond(struct connection *c, int status, const char *type, const char *body, size_t length, int head);

#endif
