/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The images that disks stand on: found by what each image says is under it, opened for reading
 * where that was allowed, and put into the description.
 */
#pragma once

#include <stdio.h>

#include "base/error.h"
#include "base/macros.h"

struct grants;
struct vm_description;

/*
 * After grants_open: adds the files under each qcow2 disk to `grants` and `vm`. What was said of
 * them before is forgotten. Paths of disks become absolute, for whoever asks the VM later.
 */
int chains_open(struct grants *grants, struct vm_description *vm, struct error *err) __must_check;

/* For --dry-run, which opens nothing and so cannot tell their names. */
void chains_print(const struct vm_description *vm, FILE *file);

/* Where the file is that an image names: beside that image unless the name says otherwise. The
 * caller's; NULL: no file, but some other place; -ENOMEM by errno. */
char *chain_path(const char *image, const char *name);
