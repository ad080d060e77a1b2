/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral ssh`: in comes the name of a VM whose user-mode network forwards a port of the host to
 * the guest's port 22, out comes ssh in our place. The guest's key is kept in the run directory,
 * under the VM's name: the next VM on that port is another machine, and must not be taken for this
 * one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mgmt/local/described.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"

#define SSH_PORT  22
#define FIXED_MAX 32

struct ssh_words {
	char name[VM_NAME_MAX + 1];
	char user[64];        /* "" for ssh's own choice */
	const char *identity; /* borrowed, like the next; NULL for ssh's own choice */
	char **command;       /* NULL-terminated */
};

struct ssh_texts {
	char port[8];
	char address[INET6_ADDRSTRLEN];
	char alias[sizeof("HostKeyAlias=") + VM_NAME_MAX];
	char hosts[RUNDIR_PATH_MAX * 2 + 64];
};

static int usage(const char *why)
{
	local_say("%s `corral ssh [USER@]NAME [-i KEY-FILE] [-- COMMAND …]`", why);
	return LOCAL_USAGE;
}

/* "USER@NAME", "NAME", "USER@" */
static int word_take(struct ssh_words *words, const char *word)
{
	const char *at = strrchr(word, '@'), *name = at ? at + 1 : word;
	size_t user = at ? at - word : 0;

	if (at && (!user || user >= sizeof(words->user) || words->user[0]))
		return usage("that is no user:");
	if (at)
		snprintf(words->user, sizeof(words->user), "%.*s", (int)user, word);
	if (!*name)
		return LOCAL_OK;
	if (words->name[0])
		return usage("one VM at a time; a command comes after --:");
	if (strlen(name) > VM_NAME_MAX)
		return usage("that is no VM's name:");
	snprintf(words->name, sizeof(words->name), "%s", name);
	return LOCAL_OK;
}

static int words_read(struct ssh_words *words, int argc, char **argv)
{
	int i, status = LOCAL_OK;

	words->command = argv + argc;
	for (i = 1; i < argc && status == LOCAL_OK; i++) {
		if (!strcmp(argv[i], "--")) {
			words->command = argv + i + 1;
			break;
		}
		if (!strcmp(argv[i], "-i") && i + 1 < argc)
			words->identity = argv[++i];
		else if (argv[i][0] == '-')
			status = usage("only -i goes before --:");
		else
			status = word_take(words, argv[i]);
	}
	if (status == LOCAL_OK && !words->name[0])
		return usage("which VM?");
	return status;
}

/* NULL if there is none. */
static const struct vm_forward *forward_find(const struct vm_description *vm)
{
	for (uint32_t i = 0; i < vm->n_nets; i++)
		for (uint32_t f = 0; f < vm->nets[i].n_forwards; f++)
			if (vm->nets[i].forwards[f].protocol == VM_TCP &&
			    vm->nets[i].forwards[f].guest_port == SSH_PORT)
				return &vm->nets[i].forwards[f];
	return NULL;
}

/* Where a forward can be reached from the host itself. */
static const char *forward_address(const struct vm_forward *forward)
{
	struct in6_addr any = IN6ADDR_ANY_INIT, parsed = {};

	if (!forward->address)
		return VM_FORWARD_ADDRESS;
	if (inet_pton(AF_INET6, forward->address, &parsed) == 1)
		return memcmp(&parsed, &any, sizeof(any)) ? forward->address : "::1";
	return inet_addr(forward->address) == INADDR_ANY ? VM_FORWARD_ADDRESS : forward->address;
}

/* What a guest without a forward can be reached by, if the host knows. */
static int port_refuse(const struct rundir *dir, const struct vm_description *vm, struct error *err)
{
	char mac[MAC_TEXT_MAX], address[ADDRESS_TEXT_MAX];

	for (uint32_t i = 0; i < vm->n_nets; i++) {
		described_mac(vm, i, mac);
		if (vm->nets[i].kind != VM_NET_USER && described_neighbour(mac, address))
			return error_set(
				err, -ENOENT,
				"\"%s\" forwards no port to its port 22, but its net%u was "
				"last reached at %s: `ssh %s`",
				dir->name, i, address, address);
	}
	return error_set(err, -ENOENT,
			 "\"%s\" forwards no port to its port 22: start it with `--net "
			 "user,forward=tcp:2222:22`",
			 dir->name);
}

static int port_ask(const struct rundir *dir, struct ssh_texts *texts, struct error *err)
{
	const struct vm_forward *forward;
	struct vm_description vm;
	int r;

	if (!rundir_alive(dir))
		return error_set(err, -ESRCH, "\"%s\" is not running, see `corral ps`", dir->name);
	r = described_read(dir, &vm, err);
	if (r >= 0) {
		forward = forward_find(&vm);
		if (forward) {
			snprintf(texts->port, sizeof(texts->port), "%u", forward->host_port);
			snprintf(texts->address, sizeof(texts->address), "%s",
				 forward_address(forward));
		} else {
			r = port_refuse(dir, &vm, err);
		}
	}
	table_deinit(&vm_table, &vm);
	return r;
}

/* ssh expands '%', and cuts at blanks outside of quotes. */
static int hosts_option(const struct rundir *dir, char *text, size_t size)
{
	int n = snprintf(text, size, "UserKnownHostsFile=\"");
	size_t used = n;

	for (const char *c = dir->path; *c && used + 2 < size; c++) {
		if (*c == '%' || *c == '"' || *c == '\\')
			text[used++] = *c == '%' ? '%' : '\\';
		text[used++] = *c;
	}
	n = snprintf(text + used, size - used, "/" RUNDIR_KNOWN_HOSTS "\"");
	return (size_t)n < size - used ? 0 : -ENAMETOOLONG;
}

/* `argv` has FIXED_MAX places more than there are words of a command. */
static void argv_fill(const char **argv, const struct ssh_words *words,
		      const struct ssh_texts *texts)
{
	const char *const fixed[] = {"ssh",
				     "-p",
				     texts->port,
				     "-o",
				     texts->hosts,
				     "-o",
				     texts->alias,
				     "-o",
				     "GlobalKnownHostsFile=/dev/null",
				     "-o",
				     "StrictHostKeyChecking=accept-new",
				     "-o",
				     "CheckHostIP=no"};
	size_t n = ARRAY_SIZE(fixed);

	memcpy(argv, fixed, sizeof(fixed));
	if (words->identity) {
		argv[n++] = "-i";
		argv[n++] = words->identity;
	}
	if (words->user[0]) {
		argv[n++] = "-l";
		argv[n++] = words->user;
	}
	argv[n++] = texts->address;
	if (words->command[0])
		argv[n++] = "--";
	for (char *const *word = words->command; *word; word++)
		argv[n++] = *word;
	argv[n] = NULL;
}

/* Returns only if there is no ssh. */
static int ssh_exec(const struct ssh_words *words, const struct rundir *dir,
		    struct ssh_texts *texts, size_t n_command, struct error *err)
{
	const char **argv = calloc(FIXED_MAX + n_command, sizeof(*argv));
	int r = hosts_option(dir, texts->hosts, sizeof(texts->hosts));

	if (!argv || r < 0) {
		free(argv);
		return error_set(err, -ENAMETOOLONG, "the path of the run directory is too long");
	}
	snprintf(texts->alias, sizeof(texts->alias), "HostKeyAlias=%s", words->name);
	argv_fill(argv, words, texts);
	execvp("ssh", (char *const *)argv);
	r = -errno;
	free(argv);
	return error_set(err, r, "cannot start ssh: %s%s", strerror(-r),
			 r == -ENOENT ? "; `sudo apt install openssh-client`" : "");
}

int verb_ssh(int argc, char **argv)
{
	struct ssh_words words = {};
	struct error err = ERROR_NULL;
	struct rundir dir;
	struct ssh_texts texts = {};
	size_t n_command = 0;
	int status = words_read(&words, argc, argv);

	if (status != LOCAL_OK)
		return status;
	while (words.command[n_command])
		n_command++;
	if (rundir_open(&dir, words.name, &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	if (port_ask(&dir, &texts, &err) >= 0)
		ssh_exec(&words, &dir, &texts, n_command, &err);
	rundir_close(&dir);
	return local_fail(&err, LOCAL_FAILED);
}
