/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a host should have. Each check tries the thing itself where that is harmless (open the
 * device, make the ring) and reads the kernel's own word where it is not.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/doctor.h"
#include "mgmt/local/firmware.h"

#define GROUPS_LISTED_MAX 256

/* First line of a small file, false if it cannot be read. */
static bool line_read(const char *path, char *line, size_t size)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, size - 1);

	if (n < 0)
		return false;
	line[n] = '\0';
	line[strcspn(line, "\n")] = '\0';
	return true;
}

static bool exists(const char *path)
{
	return !access(path, F_OK);
}

static void look_kvm(struct finding *f)
{
	_cleanup_(fd_closep) int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int version;

	if (fd < 0 && (errno == EACCES || errno == EPERM)) {
		finding_set(f, FINDING_MISSING, "/dev/kvm is there, but you may not open it");
		finding_mend(f, "sudo usermod -aG kvm $USER, then sign in again");
		return;
	}
	if (fd < 0) {
		finding_set(f, FINDING_MISSING, "/dev/kvm: %s", strerror(errno));
		finding_mend(f, "switch on VT-x or AMD-V in the firmware (or nesting in the host "
				"below), then: sudo modprobe kvm-intel || sudo modprobe kvm-amd");
		return;
	}
	version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version == KVM_API_VERSION)
		finding_set(f, FINDING_OK, "/dev/kvm opens, API version %d", version);
	else
		finding_set(f, FINDING_MISSING, "/dev/kvm speaks API version %d, not %d", version,
			    KVM_API_VERSION);
}

static bool cpu_has(const char *flag)
{
	_cleanup_(freep) char *line = NULL;
	size_t size = 0, length = strlen(flag);
	FILE *file = fopen("/proc/cpuinfo", "re");
	bool found = false;

	while (file && !found && getline(&line, &size, file) > 0) {
		char *at = line;

		if (strncmp(line, "flags", 5))
			continue;
		while ((at = strstr(at, flag)) && !found) {
			found = at[-1] == ' ' && (at[length] == ' ' || at[length] == '\n');
			at += length;
		}
		break; /* the other processors say the same */
	}
	if (file)
		fclose(file);
	return found;
}

/* What runs the guests under /dev/kvm. */
static void look_hardware(struct finding *f)
{
	if (exists("/sys/module/kvm_intel") || exists("/sys/module/kvm_amd"))
		finding_set(f, FINDING_OK, "%s: stock kernels run",
			    exists("/sys/module/kvm_intel") ? "VT-x (kvm_intel)"
							    : "AMD-V (kvm_amd)");
	else if (exists("/sys/module/kvm_pvm"))
		finding_set(f, FINDING_LIMITED,
			    "para-virtual KVM (kvm_pvm), no VT-x or AMD-V: bare-metal guests only; "
			    "stock Linux kernels need tools/lab");
	else if (cpu_has("vmx") || cpu_has("svm"))
		finding_set(f, FINDING_LIMITED,
			    "the processor has %s, but its KVM module is not "
			    "loaded",
			    cpu_has("vmx") ? "VT-x" : "AMD-V");
	else
		finding_set(f, FINDING_MISSING,
			    "no VT-x, no AMD-V: stock Linux kernels need "
			    "tools/lab");
	if (f->state != FINDING_OK && (cpu_has("vmx") || cpu_has("svm")))
		finding_mend(f, "sudo modprobe %s", cpu_has("vmx") ? "kvm-intel" : "kvm-amd");
}

static bool in_group(gid_t gid)
{
	gid_t list[GROUPS_LISTED_MAX];
	int n = getgroups(GROUPS_LISTED_MAX, list);

	for (int i = 0; i < n; i++)
		if (list[i] == gid)
			return true;
	return getegid() == gid;
}

static void look_groups(struct finding *f)
{
	struct stat st;
	struct group *group;

	if (!geteuid()) {
		finding_set(f, FINDING_OK, "you are root; other users need the group of /dev/kvm");
		return;
	}
	if (stat("/dev/kvm", &st) < 0) {
		finding_set(f, FINDING_MISSING, "no /dev/kvm to look at");
		return;
	}
	group = getgrgid(st.st_gid);
	if (in_group(st.st_gid) || (st.st_mode & 06) == 06) {
		finding_set(f, FINDING_OK, "an ordinary user with rights on /dev/kvm");
		return;
	}
	finding_set(f, FINDING_MISSING, "you are not in the group \"%s\" of /dev/kvm",
		    group ? group->gr_name : "?");
	finding_mend(f, "sudo usermod -aG %s $USER, then sign in again",
		     group ? group->gr_name : "kvm");
}

static void look_device(struct finding *f, const char *path, const char *module,
			const char *without)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0) {
		finding_set(f, FINDING_OK, "%s opens", path);
		return;
	}
	finding_set(f, FINDING_MISSING, "%s: %s; %s", path, strerror(errno), without);
	if (errno == EACCES || errno == EPERM)
		finding_mend(f, "sudo setfacl -m u:$USER:rw %s", path);
	else
		finding_mend(f, "sudo modprobe %s", module);
}

static void look_tun(struct finding *f)
{
	look_device(f, "/dev/net/tun", "tun", "no tap devices, guests' networks only by passt");
}

static void look_vhost_net(struct finding *f)
{
	look_device(f, "/dev/vhost-net", "vhost_net",
		    "guests' networks work, without the kernel's help");
}

static void look_ksm(struct finding *f)
{
	char run[16];

	if (!line_read("/sys/kernel/mm/ksm/run", run, sizeof(run))) {
		finding_set(f, FINDING_MISSING, "this kernel has no KSM: merge=on has no effect");
	} else if (run[0] == '1') {
		finding_set(f, FINDING_OK, "ksmd runs: merge=on shares equal pages");
	} else {
		finding_set(f, FINDING_LIMITED,
			    "there, but ksmd does not run: merge=on has no "
			    "effect yet");
		finding_mend(f, "echo 1 | sudo tee /sys/kernel/mm/ksm/run");
	}
}

static void look_userfaultfd(struct finding *f)
{
	_cleanup_(fd_closep) int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	_cleanup_(fd_closep) int full = -1, user = -1;

	if (fd < 0)
		full = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd >= 0 || full >= 0) {
		finding_set(f, FINDING_OK, "%s, faults of vCPUs too",
			    fd >= 0 ? "/dev/userfaultfd opens" : "the system call is allowed");
		return;
	}
	user = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	finding_set(f, user >= 0 ? FINDING_LIMITED : FINDING_MISSING,
		    "%s: no lazy restore, no post-copy",
		    user >= 0 ? "not for faults of vCPUs" : strerror(errno));
	finding_mend(f, exists("/dev/userfaultfd") ? "sudo setfacl -m u:$USER:rw /dev/userfaultfd"
						   : "sudo sysctl vm.unprivileged_userfaultfd=1");
}

static void look_landlock(struct finding *f)
{
	long version =
		syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	if (version > 0) {
		finding_set(f, FINDING_OK, "version %ld", version);
	} else if (errno == EOPNOTSUPP) {
		finding_set(f, FINDING_MISSING, "built in but off: the sandbox does without");
		finding_mend(f, "add landlock to lsm= on this host's kernel command line");
	} else {
		finding_set(f, FINDING_MISSING,
			    "not in this kernel (5.13 and later): the sandbox "
			    "does without");
	}
}

static void look_seccomp(struct finding *f)
{
	const unsigned int action = SECCOMP_RET_KILL_PROCESS;

	if (!syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action))
		finding_set(f, FINDING_OK, "filters that end the process are there");
	else
		finding_set(f, FINDING_MISSING, "%s: only --sandbox off works", strerror(errno));
}

static void look_io_uring(struct finding *f)
{
	struct io_uring_params params = {};
	_cleanup_(fd_closep) int fd = syscall(SYS_io_uring_setup, 4, &params);

	if (fd >= 0) {
		finding_set(f, FINDING_OK, "rings can be made");
		return;
	}
	finding_set(f, FINDING_LIMITED, "%s: disks are served by threads, at more cost",
		    strerror(errno));
	if (exists("/proc/sys/kernel/io_uring_disabled"))
		finding_mend(f, "sudo sysctl kernel.io_uring_disabled=0");
}

static void look_huge_pages(struct finding *f)
{
	char thp[64] = "", reserved[32] = "0";

	line_read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", reserved,
		  sizeof(reserved));
	if (!line_read("/sys/kernel/mm/transparent_hugepage/enabled", thp, sizeof(thp))) {
		finding_set(f, FINDING_LIMITED, "no transparent ones; %s reserved", reserved);
	} else if (strstr(thp, "[never]")) {
		finding_set(f, FINDING_LIMITED, "transparent ones are off; %s reserved", reserved);
		finding_mend(f,
			     "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
	} else {
		finding_set(f, FINDING_OK, "transparent ones: %s; %s reserved", thp, reserved);
	}
}

/* In a child, because it cannot be undone. */
static bool user_namespace_works(void)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid)
		_exit(unshare(CLONE_NEWUSER) < 0);
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static void look_namespaces(struct finding *f)
{
	if (user_namespace_works()) {
		finding_set(f, FINDING_OK, "user namespaces can be made");
		return;
	}
	finding_set(f, geteuid() ? FINDING_LIMITED : FINDING_OK, "no user namespaces: %s",
		    geteuid() ? "an ordinary user's VMM keeps its root "
				"directory and user"
			      : "not needed as root");
	if (!geteuid())
		return;
	if (exists("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"))
		finding_mend(f, "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0");
	else
		finding_mend(f, "sudo sysctl kernel.unprivileged_userns_clone=1 "
				"user.max_user_namespaces=10000");
}

static const char *first_of(const char *const *paths)
{
	for (; *paths; paths++)
		if (exists(*paths))
			return *paths;
	return NULL;
}

static void look_file(struct finding *f, const char *const *paths, const char *without,
		      const char *mend)
{
	const char *path = first_of(paths);

	if (path) {
		finding_set(f, FINDING_OK, "%s", path);
		return;
	}
	finding_set(f, FINDING_MISSING, "%s", without);
	finding_mend(f, "%s", mend);
}

static void look_firmware(struct finding *f)
{
	_cleanup_(freep) char *path = NULL;
	int r = firmware_find(&path, NULL);

	if (r >= 0 && exists(path)) {
		finding_set(f, FINDING_OK, "%s", path);
		return;
	}
	finding_set(f, FINDING_LIMITED, "optional: kernels boot without, whole disk images do not");
	finding_mend(f, "tools/firmware (builds it, some four minutes), or name one in "
			"CORRAL_FIRMWARE");
}

static void look_virtiofsd(struct finding *f)
{
	static const char *const paths[] = {"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd",
					    "/usr/bin/virtiofsd", NULL};

	look_file(f, paths, "optional: no folders shared with guests",
		  "sudo apt-get install virtiofsd || sudo apt-get install qemu-system-common");
}

static void look_passt(struct finding *f)
{
	static const char *const paths[] = {"/usr/bin/passt", "/usr/local/bin/passt", NULL};

	look_file(f, paths, "optional: no guests' networks without root",
		  "sudo apt-get install passt");
}

static void look_swtpm(struct finding *f)
{
	static const char *const paths[] = {"/usr/bin/swtpm", "/usr/local/bin/swtpm", NULL};

	look_file(f, paths, "optional: no TPM for guests", "sudo apt-get install swtpm");
}

const struct check doctor_checks[] = {
	{"kvm", "runs the guests", look_kvm, true},
	{"processor", "decides which guests run", look_hardware, false},
	{"groups", "who may use KVM", look_groups, false},
	{"tun", "guests' networks", look_tun, false},
	{"vhost-net", "fast guests' networks", look_vhost_net, false},
	{"ksm", "memory shared between guests", look_ksm, false},
	{"userfaultfd", "lazy restore and post-copy migration", look_userfaultfd, false},
	{"landlock", "a layer of the sandbox", look_landlock, false},
	{"seccomp", "a layer of the sandbox", look_seccomp, false},
	{"io_uring", "fast disks", look_io_uring, false},
	{"huge pages", "fast guest memory", look_huge_pages, false},
	{"user namespaces", "the sandbox of ordinary users", look_namespaces, false},
	{"firmware", "boots whole disk images", look_firmware, false},
	{"virtiofsd", "shared folders", look_virtiofsd, false},
	{"passt", "guests' networks without root", look_passt, false},
	{"swtpm", "TPM", look_swtpm, false},
};

const size_t n_doctor_checks = ARRAY_SIZE(doctor_checks);
