/* SPDX-License-Identifier: Apache-2.0 */
/* The description's defaults, its JSON, and each thing that vm_check refuses. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "proto/vm.h"

static struct vm_description vm;

static void read_text(const char *text)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_from_text(&vm_table, text, strlen(text), "vm.json", &vm, &err), 0),
		  "%s", err.text);
}

/* The least that can be run; each test changes one thing. */
static void setup(void)
{
	cr_assert(eq(int, table_init(&vm_table, &vm), 0));
	read_text("{\"name\": \"web1\", \"kernel\": \"/boot/vmlinuz\"}");
}

static void teardown(void)
{
	table_deinit(&vm_table, &vm);
}

TestSuite(vm, .init = setup, .fini = teardown);

static void accepts(const char *text)
{
	struct error err = ERROR_NULL;

	read_text(text);
	cr_assert(eq(int, vm_check(&vm, &err), 0), "%s", err.text);
}

static void refuses(const char *text, const char *sentence)
{
	struct error err = ERROR_NULL;

	read_text(text);
	cr_assert(eq(int, vm_check(&vm, &err), -EINVAL), "%s", text);
	cr_assert(eq(str, err.text, (char *)sentence));
}

/* What the table itself refuses already. */
static void refuses_to_read(const char *text, const char *sentence)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_from_text(&vm_table, text, strlen(text), "vm.json", &vm, &err),
		     -EINVAL));
	cr_assert(eq(str, err.text, (char *)sentence));
}

Test(vm, a_name_and_a_kernel_are_enough)
{
	accepts("{}");
}

Test(vm, defaults)
{
	cr_assert(eq(str, vm.machine, "corral-1"));
	cr_assert(eq(u32, vm.cpus, 1));
	cr_assert(eq(u64, vm.memory.size, 512 << 20));
	cr_assert(eq(u32, vm.memory.thp, VM_THP_DEFAULT));
	cr_assert(not(vm.memory.merge || vm.memory.shared || vm.memory.prefault));
	cr_assert(eq(u32, vm.n_disks, 0));
	cr_assert(eq(u32, vm.console.kind, VM_CONSOLE_STDIO));
	cr_assert(eq(u32, vm.console.device, VM_CONSOLE_SERIAL));
	cr_assert(vm.rng && vm.sandbox);
	cr_assert(eq(u32, vm.on_reset, VM_RESET_REBOOT));
}

Test(vm, a_disk_has_one_queue)
{
	accepts("{\"disks\": [{\"path\": \"/a.img\"}]}");
	cr_assert(eq(u32, vm.disks[0].queues, 1));
	cr_assert(not(vm.disks[0].readonly || vm.disks[0].direct));
}

Test(vm, a_disk_is_raw_stands_on_nothing_and_has_no_limit)
{
	accepts("{\"disks\": [{\"path\": \"/a.img\"}]}");
	cr_assert(eq(u32, vm.disks[0].format, VM_FORMAT_RAW));
	cr_assert(eq(u32, vm.disks[0].backing, VM_BACKING_DENY));
	cr_assert(eq(u32, vm.disks[0].on_error, VM_ERROR_FULL));
	cr_assert(vm.disks[0].discard && !vm.disks[0].inactive);
	cr_assert(eq(u64, vm.disks[0].limit.iops | vm.disks[0].limit.bps, 0));
}

Test(vm, a_disk_in_full)
{
	accepts("{\"disks\": [{\"path\": \"/a\", \"format\": \"qcow2\", \"backing\": \"allow\","
		" \"discard\": false, \"limit\": {\"iops\": 100, \"bps\": \"10M\", \"read-iops\": "
		"1,"
		" \"write-bps\": 5}, \"onerror\": \"report\", \"low-space\": \"2G\", \"chain\":"
		" [{\"path\": \"/b\", \"format\": \"qcow2\"}, {\"path\": \"/c\", \"format\":"
		" \"raw\"}]}]}");
	cr_assert(eq(u64, vm.disks[0].limit.bps, 10 << 20));
	cr_assert(eq(u32, vm.disks[0].on_error, VM_ERROR_REPORT));
	cr_assert(eq(u32, vm.disks[0].n_chain, 2));
	cr_assert(eq(u32, vm.disks[0].chain[0].format, VM_FORMAT_QCOW2));
	cr_assert(eq(str, vm.disks[0].chain[1].path, "/c"));
}

Test(vm, a_raw_disk_stands_on_nothing)
{
	refuses("{\"disks\": [{\"path\": \"/a\", \"backing\": \"allow\"}]}",
		"disks[0].backing: only format \"qcow2\" has images under it, this is \"raw\"");
	refuses("{\"disks\": [{\"path\": \"/a\", \"format\": \"qcow2\", \"chain\":"
		" [{\"path\": \"/b\", \"format\": \"raw\"}]}]}",
		"disks[0].chain: does not go with backing \"deny\"");
}

Test(vm, formats_are_two)
{
	refuses_to_read("{\"disks\": [{\"path\": \"/a\", \"format\": \"vmdk\"}]}",
			"vm.json: disks[0].format: \"vmdk\" is not one of: raw, qcow2");
}

/* Each of them is a descriptor of the VMM. */
Test(vm, all_chains_together_have_an_end)
{
	struct error err = ERROR_NULL;

	accepts("{\"disks\": [{\"path\": \"/a\", \"format\": \"qcow2\", \"backing\": \"allow\"},"
		" {\"path\": \"/b\", \"format\": \"qcow2\", \"backing\": \"allow\"}]}");
	vm.disks[0].n_chain = VM_CHAINS_MAX - 3;
	vm.disks[1].n_chain = 3;
	cr_assert(eq(int, vm_check(&vm, &err), 0));
	vm.disks[1].n_chain = 4;
	cr_assert(eq(int, vm_check(&vm, &err), -E2BIG));
	vm.disks[0].n_chain = vm.disks[1].n_chain = 0;
}

Test(vm, everything_at_once)
{
	accepts("{\"cpus\": 64, \"memory\": {\"size\": \"4G\", \"merge\": true, \"thp\": \"off\","
		" \"prefault\": true}, \"initrd\": \"/i\", \"append\": \"quiet\", \"disks\":"
		" [{\"path\": \"/a\", \"readonly\": true, \"direct\": true, \"serial\": \"A 1\","
		" \"queues\": 8}, {\"path\": \"/b\"}], \"console\": {\"kind\": \"file\", \"path\":"
		" \"/c\", \"device\": \"virtio\"}, \"rng\": false, \"sandbox\": false,"
		" \"on-reset\": \"exit\"}");
}

Test(vm, a_name_is_needed)
{
	refuses("{\"name\": \"\"}", "name: is missing");
	free(vm.name);
	vm.name = NULL;
	refuses("{}", "name: is missing");
}

Test(vm, a_name_has_its_letters)
{
	accepts("{\"name\": \"0aZ-_.9\"}");
	refuses("{\"name\": \"../web\"}", "name: \"../web\" does not start with a letter or digit");
	refuses("{\"name\": \"-v\"}", "name: \"-v\" does not start with a letter or digit");
	refuses("{\"name\": \"a/b\"}",
		"name: \"a/b\" has other than letters, digits, '-', '_' and '.'");
	refuses("{\"name\": \"a\\u00e4\"}",
		"name: \"a\xc3\xa4\" has other than letters, digits, '-', '_' and '.'");
}

Test(vm, a_name_has_48_letters_at_most)
{
	accepts("{\"name\": \"012345678901234567890123456789012345678901234567\"}");
	refuses_to_read("{\"name\": \"0123456789012345678901234567890123456789012345678\"}",
			"vm.json: name: a text of 49 bytes is too long, at most 48");
}

Test(vm, a_long_name_from_elsewhere_is_refused)
{
	struct error err = ERROR_NULL;

	free(vm.name);
	vm.name = strdup("0123456789012345678901234567890123456789012345678");
	cr_assert(eq(int, vm_check(&vm, &err), -EINVAL));
	cr_assert(eq(str, err.text, "name: 49 bytes are too long, at most 48"));
}

Test(vm, only_our_machine_is_known)
{
	refuses("{\"machine\": \"pc\"}", "machine: \"pc\" is not known, only \"corral-1\" is");
}

Test(vm, a_kernel_is_needed)
{
	refuses("{\"kernel\": \"\"}", "kernel: is missing, name a kernel or a firmware file");
}

Test(vm, cpus_have_a_range)
{
	refuses_to_read("{\"cpus\": 0}", "vm.json: cpus: 0 is too small, at least 1");
	refuses_to_read("{\"cpus\": 65}", "vm.json: cpus: 65 is too large, at most 64");
	vm.cpus = 65;
	refuses("{}", "cpus: 65 is not within 1 and 64");
	vm.cpus = 0;
	refuses("{}", "cpus: 0 is not within 1 and 64");
}

Test(vm, append_has_an_end)
{
	struct error err = ERROR_NULL;

	vm.append = malloc(VM_APPEND_MAX + 2);
	memset(vm.append, 'a', VM_APPEND_MAX + 1);
	vm.append[VM_APPEND_MAX + 1] = '\0';
	cr_assert(eq(int, vm_check(&vm, &err), -EINVAL));
	cr_assert(eq(str, err.text, "append: 2048 bytes are too long, at most 2047"));
	vm.append[VM_APPEND_MAX] = '\0';
	cr_assert(eq(int, vm_check(&vm, &err), 0));
}

Test(vm, memory_has_steps_of_2M)
{
	accepts("{\"memory\": {\"size\": \"2M\"}}");
	refuses("{\"memory\": {\"size\": \"3M\"}}",
		"memory.size: 3M is not a multiple of 2M, and at least that");
	refuses("{\"memory\": {\"size\": 2097153}}",
		"memory.size: 2097153 is not a multiple of 2M, and at least that");
	refuses_to_read("{\"memory\": {\"size\": \"1M\"}}",
			"vm.json: memory.size: 1M is too small, at least 2M");
	vm.memory.size = 0;
	refuses("{}", "memory.size: 0 is not a multiple of 2M, and at least that");
}

Test(vm, memory_has_an_end)
{
	accepts("{\"memory\": {\"size\": \"64T\"}}");
	refuses_to_read("{\"memory\": {\"size\": \"65T\"}}",
			"vm.json: memory.size: 65T is too large, at most 64T");
	vm.memory.size = UINT64_C(65) << 40;
	refuses("{}", "memory.size: 65T is too large, at most 64T");
}

Test(vm, merged_memory_is_not_shared)
{
	refuses("{\"memory\": {\"merge\": true, \"shared\": true}}",
		"memory.merge: does not go with memory.shared: the kernel merges private pages "
		"only");
}

Test(vm, merged_memory_has_no_huge_pages)
{
	accepts("{\"memory\": {\"merge\": true, \"thp\": \"default\"}}");
	refuses("{\"memory\": {\"merge\": true, \"thp\": \"on\"}}",
		"memory.merge: does not go with memory.thp \"on\": huge pages are not merged");
}

Test(vm, a_disk_needs_a_path)
{
	refuses_to_read("{\"disks\": [{}]}",
			"vm.json: disks[0].path: is missing: an image file or a block device");
	refuses("{\"disks\": [{\"path\": \"/a\"}, {\"path\": \"\"}]}", "disks[1].path: is missing");
}

Test(vm, queues_have_a_range)
{
	refuses_to_read("{\"disks\": [{\"path\": \"/a\"}, {\"path\": \"/b\", \"queues\": 0}]}",
			"vm.json: disks[1].queues: 0 is too small, at least 1");
	read_text("{\"disks\": [{\"path\": \"/a\"}]}");
	vm.disks[0].queues = 9;
	refuses("{}", "disks[0].queues: 9 is not within 1 and 8");
	vm.disks[0].queues = 0;
	refuses("{}", "disks[0].queues: 0 is not within 1 and 8");
}

Test(vm, a_serial_is_20_printable_letters)
{
	accepts("{\"disks\": [{\"path\": \"/a\", \"serial\": \"01234567890123456 ~!\"}]}");
	refuses_to_read("{\"disks\": [{\"path\": \"/a\", \"serial\": \"012345678901234567890\"}]}",
			"vm.json: disks[0].serial: a text of 21 bytes is too long, at most 20");
	refuses("{\"disks\": [{\"path\": \"/a\", \"serial\": \"a\\u007f\"}]}",
		"disks[0].serial: \"a?\" has other than printable ASCII");
	refuses("{\"disks\": [{\"path\": \"/a\", \"serial\": \"\\u00e4\"}]}",
		"disks[0].serial: \"\xc3\xa4\" has other than printable ASCII");
}

Test(vm, sixteen_disks_fit)
{
	char text[1024] = "{\"disks\": [{\"path\": \"/a\"}";

	for (int i = 1; i < VM_DISKS_MAX; i++)
		strcat(text, ",{\"path\":\"/a\"}");
	size_t length = strlen(text);
	strcpy(text + length, "]}");
	accepts(text);
	strcpy(text + length, ",{\"path\":\"/a\"}]}");
	refuses_to_read(text, "vm.json: disks: 17 elements are too many, at most 16");
}

Test(vm, a_console_file_needs_a_path)
{
	refuses("{\"console\": {\"kind\": \"file\"}}",
		"console.path: is missing, kind \"file\" needs one");
	refuses("{\"console\": {\"kind\": \"file\", \"path\": \"\"}}",
		"console.path: is missing, kind \"file\" needs one");
}

Test(vm, a_path_is_for_console_files_only)
{
	refuses("{\"console\": {\"kind\": \"pty\", \"path\": \"/a\"}}",
		"console.path: only kind \"file\" has one, this is \"pty\"");
}

Test(vm, an_unknown_key_has_its_path)
{
	refuses_to_read("{\"memory\": {\"sice\": 1}}",
			"vm.json: memory.sice: unknown key, did you mean \"size\"?");
}

Test(vm, a_firmware_stands_for_a_kernel)
{
	free(take_ptr(vm.kernel));
	accepts("{\"firmware\": \"/usr/share/corral/CLOUDHV.fd\"}");
}

Test(vm, a_firmware_finds_its_own_kernel)
{
	refuses("{\"firmware\": \"f\"}",
		"firmware: does not go with a kernel: the firmware finds its own");
}

Test(vm, a_card_is_of_the_user_s_kind_unless_said)
{
	accepts("{\"nets\": [{}, {\"kind\": \"tap\", \"tap\": \"tap0\", \"queues\": 4}]}");
	cr_assert(eq(u32, vm.nets[0].kind, VM_NET_USER));
	cr_assert(eq(u32, vm.nets[0].queues, 1));
	cr_assert(eq(u32, vm.nets[0].vhost, VM_VHOST_AUTO));
	cr_assert(eq(u32, vm.nets[1].queues, 4));
}

Test(vm, what_does_not_go_with_a_card_s_kind)
{
	refuses("{\"nets\": [{\"kind\": \"tap\"}]}", "nets[0].tap: is missing, name an interface");
	refuses("{\"nets\": [{\"tap\": \"tap0\"}]}",
		"nets[0].tap: only kind \"tap\" has one, this is \"user\"");
	refuses("{\"nets\": [{\"kind\": \"fd\"}]}", "nets[0].fd: 0 is not the descriptor of a tap");
	refuses("{\"nets\": [{\"vhost\": \"on\"}]}",
		"nets[0].vhost: does not go with kind \"user\": vhost-net needs a tap");
	refuses("{\"nets\": [{\"queues\": 2}]}",
		"nets[0].queues: only kind \"tap\" has several, this is \"user\"");
	refuses("{\"nets\": [{\"kind\": \"tap\", \"tap\": \"t\", \"forwards\": "
		"[{\"host-port\": 1, \"guest-port\": 2}]}]}",
		"nets[0].forwards: only kind \"user\" forwards ports, this is \"tap\"");
	refuses("{\"nets\": [{\"kind\": \"tap\", \"tap\": \"t\", \"vhost\": \"on\", \"tx-rate\": "
		"5}]}",
		"nets[0].vhost: does not go with a rate limit: the kernel moves the frames past "
		"us");
}

Test(vm, a_forward_listens_at_an_address)
{
	accepts("{\"nets\": [{\"host\": true, \"forwards\": ["
		"{\"host-port\": 1, \"guest-port\": 2}, "
		"{\"address\": \"0.0.0.0\", \"host-port\": 1, \"guest-port\": 2}, "
		"{\"address\": \"2001:db8::1\", \"host-port\": 1, \"guest-port\": 2}]}]}");
	cr_assert(vm.nets[0].host);
	cr_assert(eq(ptr, vm.nets[0].forwards[0].address, NULL));
	cr_assert(eq(str, vm.nets[0].forwards[2].address, "2001:db8::1"));
	refuses("{\"nets\": [{\"forwards\": [{\"address\": \"localhost\", \"host-port\": 1, "
		"\"guest-port\": 2}]}]}",
		"nets[0].forwards[0].address: \"localhost\" is not an address such as 127.0.0.1 "
		"or 0.0.0.0");
	refuses("{\"nets\": [{\"kind\": \"tap\", \"tap\": \"t\", \"host\": true}]}",
		"nets[0].host: only kind \"user\" has it, this is \"tap\"");
}

Test(vm, a_forward_has_both_its_ports)
{
	refuses_to_read(
		"{\"nets\": [{\"forwards\": [{\"host-port\": 2222}]}]}",
		"vm.json: nets[0].forwards[0].guest-port: is missing: the port in the guest");
}

Test(vm, a_card_s_address_is_a_station_s)
{
	static const char *const bad[] = {"",
					  "52:54:00:12:34",
					  "52:54:00:12:34:5g",
					  "53:54:00:12:34:56",
					  "00:00:00:00:00:00",
					  "5254:00:12:34:56:"};
	uint8_t mac[6], again[6], other[6];

	cr_assert(eq(int, vm_mac_parse("52:54:00:12:34:fE", mac), 0));
	cr_assert(eq(int, mac[5], 0xfe));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert(eq(int, vm_mac_parse(bad[i], mac), -EINVAL), "%s", bad[i]);
	vm_mac_make("web1", 0, mac);
	vm_mac_make("web1", 0, again);
	vm_mac_make("web1", 1, other);
	cr_assert(eq(int, memcmp(mac, again, 6), 0));
	cr_assert(ne(int, memcmp(mac, other, 6), 0));
	cr_assert(eq(int, mac[0] & 3, 2), "local, and no group's");
}

Test(vm, a_vsock_address_is_a_guest_s)
{
	accepts("{\"vsock-cid\": 3}");
	refuses("{\"vsock-cid\": 2}", "vsock-cid: 2 is not a guest's, at least 3");
}

Test(vm, a_port_has_a_name_that_can_be_a_file_s)
{
	accepts("{\"ports\": [{\"name\": \"org.corral.run\"}]}");
	refuses("{\"ports\": [{\"name\": \"../x\"}]}",
		"ports[0].name: \"../x\" is not 1 to 32 letters, digits, '.', '_' and '-'");
}

Test(vm, cloud_init_needs_its_user_data)
{
	refuses("{\"cloud-init\": {\"network\": \"n\"}}",
		"cloud-init.user-data: is missing, name a file");
}
