#ifndef PAGES_H
#define PAGES_H

#include <stddef.h>

/* Writes the body for `target` and names its type. Returns the HTTP status. */
int page(const char *target, char *body, size_t size, const char **type);

#endif
