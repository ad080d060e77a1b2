/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results of commands in guests as files that CI systems read: JUnit's XML, and TAP.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "mgmt/local/job.h"

struct ci_result {
	const char *name; /* borrowed */
	bool passed;
	struct job_result job;
};

/* A whole file or none: it is written beside its place and then renamed. */
int ci_junit_write(const char *path, const char *suite, const struct ci_result *results, size_t n,
		   struct error *err) __must_check;
void ci_tap_print(FILE *file, const struct ci_result *results, size_t n);
