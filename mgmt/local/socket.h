/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UNIX stream sockets by path: the control socket, from both sides.
 */
#pragma once

#include "base/error.h"
#include "base/macros.h"

/* A connected, non-blocking descriptor, or -errno (-ECONNREFUSED, -ENOENT: nobody listens). */
int socket_connect(const char *path) __must_check;

/* A listening descriptor that only the owner can reach. A dead socket in the way is replaced. */
int socket_listen(const char *path, struct error *err) __must_check;

/* Unlinks `path` if it is a socket where nobody listens. */
void socket_remove_dead(const char *path);
