/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a kernel's file and places where its modules may be. Out: the modules' files in the order in
 * which they load, as modules.dep has it; what is built into the kernel is left out.
 */
#include "mgmt/local/guest-modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"

#define LIST_MAX   (16 << 20) /* bytes of modules.dep */
#define PLACES_MAX 8

/* modules.dep and modules.builtin of one directory, and what was picked from them. */
struct picking {
	char *dep, *builtin; /* owned */
	struct guest_modules *modules;
};

static int list_read(const char *directory, const char *file, char **ret_text)
{
	char path[PATH_MAX + 32];
	_cleanup_(fd_closep) int fd = -1;
	size_t size;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd_read_all(fd, LIST_MAX, ret_text, &size);
}

/* "kernel/fs/foo-bar.ko.xz" is the module foo_bar. */
static bool file_is_module(const char *file, size_t length, const char *name)
{
	const char *start = memrchr(file, '/', length);
	size_t n = strlen(name);

	start = start ? start + 1 : file;
	length -= start - file;
	if (length < n + 3 || memcmp(start + n, ".ko", 3) != 0)
		return false;
	for (size_t i = 0; i < n; i++)
		if (start[i] != name[i] && !(start[i] == '-' && name[i] == '_'))
			return false;
	return true;
}

/* The line of a list whose first word is that module's file. */
static const char *line_find(const char *list, const char *name)
{
	for (const char *line = list; line && *line;) {
		if (file_is_module(line, strcspn(line, ":\n"), name))
			return line;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return NULL;
}

static int file_add(struct guest_modules *modules, const char *file, size_t length)
{
	char *copy;

	for (uint32_t i = 0; i < modules->n_files; i++)
		if (strlen(modules->files[i]) == length && !memcmp(modules->files[i], file, length))
			return 0;
	if (modules->n_files == JOB_MODULES_MAX)
		return -E2BIG;
	copy = strndup(file, length);
	if (!copy)
		return -ENOMEM;
	modules->files[modules->n_files++] = copy;
	return 0;
}

/* "FILE: LAST … FIRST": what a module needs, in turn, from the end, then itself. */
static int line_add(struct guest_modules *modules, const char *line)
{
	size_t file = strcspn(line, ":\n"), end = strcspn(line, "\n");
	int r = 0;

	while (r >= 0 && end > file) {
		size_t start = end;

		while (start > file && line[start - 1] != ' ' && line[start - 1] != ':')
			start--;
		if (start < end)
			r = file_add(modules, line + start, end - start);
		end = start - 1;
	}
	return r < 0 ? r : file_add(modules, line, file);
}

/* >0: the kernel has no such module. */
static int module_pick(struct picking *picking, const char *name)
{
	const char *line = line_find(picking->dep, name);

	if (line)
		return line_add(picking->modules, line);
	return line_find(picking->builtin, name) ? 0 : 1;
}

static int modules_pick(struct picking *picking, const struct guest_modules_wish *wish,
			struct error *err)
{
	/* What has no sum of its own to check asks for crc32c by name, when it is mounted. */
	static const char *const optional[] = {"crc32c_generic"};
	const char *const needed[] = {"virtio_pci",      "virtio_blk",
				      "virtio_console",  "overlay",
				      wish->file_system, wish->net ? "virtio_net" : NULL};

	for (size_t i = 0; i < ARRAY_SIZE(optional); i++)
		if (module_pick(picking, optional[i]) < 0)
			return error_set(err, -ENOMEM, "cannot list kernel modules: %s",
					 strerror(ENOMEM));
	for (size_t i = 0; i < ARRAY_SIZE(needed) && needed[i]; i++) {
		int r = module_pick(picking, needed[i]);

		if (r > 0)
			return error_set(err, -ENOENT,
					 "the kernel \"%s\" lacks the module %s: it is neither in "
					 "modules.dep nor in modules.builtin of \"%s\"; take "
					 "another kernel, or name its modules with --modules DIR",
					 wish->kernel, needed[i], picking->modules->directory);
		if (r < 0)
			return error_set(err, r, "cannot list kernel modules: %s", strerror(-r));
	}
	return 0;
}

struct places {
	uint32_t n;
	char paths[PLACES_MAX][PATH_MAX];
};

static void __attribute__((format(printf, 2, 3)))
place_add(struct places *places, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(places->paths[places->n++], PATH_MAX, format, list);
	va_end(list);
}

static void places_list(struct places *places, const struct guest_modules_wish *wish,
			const char *version)
{
	int beside = strrchr(wish->kernel, '/') ? strrchr(wish->kernel, '/') - wish->kernel : -1;

	places->n = 0;
	if (wish->modules) {
		place_add(places, "%s", wish->modules);
		place_add(places, "%s/%s", wish->modules, version);
		place_add(places, "%s/lib/modules/%s", wish->modules, version);
		return;
	}
	if (wish->rootfs) {
		place_add(places, "%s/lib/modules/%s", wish->rootfs, version);
		place_add(places, "%s/usr/lib/modules/%s", wish->rootfs, version);
	}
	place_add(places, "/lib/modules/%s", version);
	place_add(places, "%.*s", beside < 0 ? 1 : beside, beside < 0 ? "." : wish->kernel);
	if (beside > 0)
		place_add(places, "%.*s/../lib/modules/%s", beside, wish->kernel, version);
}

static int places_missed(const struct places *places, const struct guest_modules_wish *wish,
			 const char *version, struct error *err)
{
	char text[300];
	size_t used = 0;

	for (uint32_t i = 0; i < places->n && used < sizeof(text); i++)
		used += snprintf(text + used, sizeof(text) - used, "%s%s", i ? ", " : "",
				 places->paths[i]);
	return error_set(err, -ENOENT,
			 "cannot find the modules of kernel %s (virtio_pci, virtio_blk, "
			 "virtio_console, overlay, %s): no modules.dep in %s; name their directory "
			 "with --modules DIR, or --modules none if the kernel has them built in",
			 version, wish->file_system, text);
}

int guest_modules_find(struct guest_modules *modules, const struct guest_modules_wish *wish,
		       struct error *err)
{
	struct picking picking = {.modules = modules};
	char version[GUEST_VERSION_MAX];
	struct places places;
	int r;

	*modules = (struct guest_modules){};
	if (wish->modules && !strcmp(wish->modules, "none"))
		return 0;
	r = guest_kernel_version(wish->kernel, version, err);
	if (r < 0)
		return r;
	places_list(&places, wish, version);
	for (uint32_t i = 0; i < places.n && !picking.dep; i++)
		if (list_read(places.paths[i], "modules.dep", &picking.dep) >= 0)
			strcpy(modules->directory, places.paths[i]);
	if (!picking.dep)
		return places_missed(&places, wish, version, err);
	r = list_read(modules->directory, "modules.builtin", &picking.builtin);
	if (r >= 0 || r == -ENOENT)
		r = modules_pick(&picking, wish, err);
	else
		r = error_set(err, r, "cannot read \"%s/modules.builtin\": %s", modules->directory,
			      strerror(-r));
	free(picking.dep);
	free(picking.builtin);
	if (r < 0)
		guest_modules_deinit(modules);
	return r;
}

void guest_modules_deinit(struct guest_modules *modules)
{
	while (modules->n_files)
		free(modules->files[--modules->n_files]);
}
