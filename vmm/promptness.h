/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that answer (main, I/O) beside threads that compute (vCPUs): asks the scheduler to run
 * the calling thread soon after it wakes, in exchange for short turns. Needs no right; a kernel
 * before 6.12 takes the request and does nothing with it.
 */
#pragma once

void promptness_ask(void);
