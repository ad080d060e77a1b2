/* SPDX-License-Identifier: Apache-2.0 */
/* The list of methods is whole, and describes itself. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "proto/control.h"

Test(control, each_method_has_a_name_of_its_own_and_help)
{
	for (size_t i = 0; i < CONTROL_METHODS; i++) {
		cr_assert(control_methods[i].name && control_methods[i].help, "%zu", i);
		for (size_t j = 0; j < i; j++)
			cr_assert(ne(str, (char *)control_methods[i].name,
				     (char *)control_methods[j].name));
	}
}

Test(control, names_stand_at_their_ids)
{
	cr_assert(eq(str, (char *)control_methods[CONTROL_STATUS].name, "status"));
	cr_assert(eq(str, (char *)control_methods[CONTROL_POWER_BUTTON].name, "power-button"));
	cr_assert(eq(str, (char *)control_methods[CONTROL_SANDBOX].name, "sandbox"));
}

Test(control, some_take_a_descriptor)
{
	for (size_t i = 0; i < CONTROL_METHODS; i++)
		cr_assert(eq(int, control_methods[i].takes_fd,
			     i == CONTROL_CONSOLE || i == CONTROL_AGENT ||
				     i == CONTROL_DISK_SNAPSHOT || i == CONTROL_DISK_ADD));
}

Test(control, describes_every_method)
{
	json_auto_t *json = control_describe();
	const json_t *methods = json_object_get(json, "methods");

	cr_assert(eq(sz, json_array_size(methods), CONTROL_METHODS));
	for (size_t i = 0; i < CONTROL_METHODS; i++) {
		const json_t *method = json_array_get(methods, i);
		cr_assert(eq(str, (char *)json_string_value(json_object_get(method, "name")),
			     (char *)control_methods[i].name));
	}
}

Test(control, describes_parameters)
{
	json_auto_t *json = control_describe();
	const json_t *resize = json_array_get(json_object_get(json, "methods"), CONTROL_RESIZE);
	const json_t *fields = json_object_get(json_object_get(resize, "params"), "fields");
	const json_t *columns = json_array_get(fields, 0);

	cr_assert(eq(str, (char *)json_string_value(json_object_get(columns, "name")), "columns"));
	cr_assert(eq(int, (int)json_integer_value(json_object_get(columns, "max")), 65535));
}

Test(control, a_description_fits_a_line)
{
	json_auto_t *json = control_describe();

	cr_assert(lt(sz, json_dumpb(json, NULL, 0, JSON_COMPACT), CONTROL_LINE_MAX));
}

Test(control, each_state_has_a_name)
{
	for (int i = 0; i < VM_STATES; i++)
		cr_assert(vm_state_names[i] != NULL);
	cr_assert(vm_state_names[VM_STATES] == NULL);
	cr_assert(eq(str, (char *)vm_state_names[VM_PAUSED], "paused"));
}

Test(control, a_terminal_has_a_size)
{
	static const char text[] = "{\"columns\": 80, \"rows\": 0}";
	struct control_resize resize;
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_init(&control_resize_table, &resize), 0));
	cr_assert(eq(
		int,
		table_from_text(&control_resize_table, text, strlen(text), "params", &resize, &err),
		-EINVAL));
	cr_assert(eq(str, err.text, "params: rows: 0 is too small, at least 1"));
}

Test(control, a_disk_is_described_as_in_a_vm)
{
	static const char text[] =
		"{\"disk\": {\"path\": \"/a\", \"readonly\": true, \"queues\": 4}}";
	struct control_disk_add add;
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_init(&control_disk_add_table, &add), 0));
	cr_assert(eq(
		int,
		table_from_text(&control_disk_add_table, text, strlen(text), "params", &add, &err),
		0));
	cr_assert(eq(str, add.disk.path, "/a"));
	cr_assert(add.disk.readonly);
	cr_assert(eq(u32, add.disk.queues, 4));
	table_deinit(&control_disk_add_table, &add);
}

Test(control, the_guest_has_ten_seconds)
{
	static const char text[] = "{\"disk\": \"disk1\"}", none[] = "{}";
	struct control_disk_remove remove;
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_init(&control_disk_remove_table, &remove), 0));
	cr_assert(eq(int,
		     table_from_text(&control_disk_remove_table, text, strlen(text), "params",
				     &remove, &err),
		     0));
	cr_assert(eq(u32, remove.timeout_ms, 10000));
	cr_assert(eq(int,
		     table_from_text(&control_disk_remove_table, none, 2, "params", &remove, &err),
		     -EINVAL));
	table_deinit(&control_disk_remove_table, &remove);
}
