/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a launcher and the first process of its guest say to each other. The launcher leaves the job
 * as a file in the initrd; the guest writes frames to a virtio console port. Numbers are
 * little-endian. The guest's side is not believed: the launcher reads frames with job_parser_feed.
 *
 *   /job      u32 arguments, u32 words of the environment, then texts, each with its NUL: file
 *             system, its mount options, working directory, arguments, environment
 *   /modules  "00", "01", …: kernel modules in the order in which they load
 *   frame     u32 type, u32 length, then as many bytes; at most JOB_FRAME_MAX
 */
#pragma once

#define JOB_PORT_NAME   "org.corral.run"
#define JOB_DISK_SERIAL "corral-root"
#define JOB_FILE        "/job"
#define JOB_MODULES     "/modules"

#define JOB_VERSION     1
#define JOB_HEADER_SIZE 8
#define JOB_FRAME_MAX   16384   /* bytes after the header */
#define JOB_TEXT_MAX    256     /* of a JOB_FAILED */
#define JOB_FILE_MAX    1048576 /* what a kernel takes as arguments is less */
#define JOB_WORDS_MAX   4096    /* arguments, and as many words of the environment */
#define JOB_MODULES_MAX 64

enum job_type {
	JOB_HELLO,  /* u32 JOB_VERSION; first of all */
	JOB_OUT,    /* bytes of the command's standard output */
	JOB_ERR,    /* and of its standard error */
	JOB_END,    /* u32 enum job_end, u32 value; nothing after it counts */
	JOB_FAILED, /* u32 errno, then a sentence: the command could not be reached; nor after this
		     */
	JOB_TYPES,
};

enum job_end {
	JOB_EXITED,   /* value: the status */
	JOB_SIGNALED, /* value: the signal */
	JOB_NO_EXEC,  /* value: errno of execve */
	JOB_ENDS,
};
