#ifndef VERSION_H
#define VERSION_H

/* Changed by hand with every release; never a date, so that equal sources stay equal bytes. */
#define SHOP_VERSION "1.0.0"

#endif
