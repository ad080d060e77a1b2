/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The value of --net: "user", "tap=IF" or "fd=N", then "forward=tcp:2222:22" any number of times
 * and the words of a network card's table.
 */
#pragma once

#include "base/error.h"

struct vm_net;

/* `net` is initialised; on failure it may be half filled. */
int net_words_read(struct vm_net *net, const char *flag_name, const char *value,
		   struct error *err) __must_check;
