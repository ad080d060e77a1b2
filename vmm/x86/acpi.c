/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI 6.4 tables, chapter 5.2. Fixed hardware does not exist on this board: the fields of the FADT
 * that describe it, PM timer included, are left out as the specification wants them on a
 * hardware-reduced platform. (The timer's port is there all the same, for firmware that knows the
 * board.)
 */
#include "vmm/x86/acpi.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/cursor.h"
#include "devices/aml.h"
#include "devices/power.h"
#include "devices/rtc.h"
#include "vmm/x86/layout.h"

#define OEM_ID          "CORRAL"
#define OEM_TABLE       "CORRAL-1"
#define OEM_REVISION    1
#define CREATOR         "CRRL"

#define HEADER_SIZE     36
#define HEADER_LENGTH   4 /* offset of the table's length */
#define HEADER_CHECKSUM 9
#define TABLE_ALIGN     64

#define RSDP_SIZE       36
#define RSDP_FIRST_SIZE 20 /* what the first checksum covers */

#define FADT_SIZE       276
#define FADT_SERVER     4 /* preferred profile: enterprise server */
#define FADT_NO_C2      101
#define FADT_NO_C3      1001
/* IA-PC boot architecture: no VGA, no 8042, no legacy devices. */
#define FADT_NO_VGA    (1u << 2)
#define FADT_WBINVD    (1u << 0)
#define FADT_C1        (1u << 2)
#define FADT_BUTTON    (1u << 4)  /* power button is a device, not fixed hardware */
#define FADT_SLEEP     (1u << 5)  /* likewise sleep button (there is none) */
#define FADT_RTC       (1u << 6)  /* RTC wake-up is not in fixed registers */
#define FADT_RESET     (1u << 10) /* RESET_REG_SUP */
#define FADT_REDUCED   (1u << 20) /* HW_REDUCED_ACPI */

#define SPACE_IO       1
#define ACCESS_BYTE    1

#define MADT_LAPIC     0
#define MADT_IOAPIC    1
#define MADT_X2APIC    9
#define MADT_ENABLED   1
#define MADT_LAPIC_IDS 255 /* identifiers from here on need the longer entry */

struct tables {
	struct cursor out;
	gpa_t gpa; /* of the first byte */
};

static void put_zeroes(struct cursor *out, size_t n)
{
	while (n-- > 0)
		cursor_put_u8(out, 0);
}

static uint8_t checksum(const uint8_t *data, size_t size)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < size; i++)
		sum += data[i];
	return -sum;
}

/* Starts a table on its own alignment and returns where in the buffer. */
static size_t table_open(struct tables *tables, const char *signature, uint8_t revision)
{
	struct cursor *out = &tables->out;
	size_t start;

	put_zeroes(out, align_up(out->at, TABLE_ALIGN) - out->at);
	start = out->at;
	cursor_put_bytes(out, signature, 4);
	cursor_put_u32(out, 0); /* length and checksum are filled in when the table ends */
	cursor_put_u8(out, revision);
	cursor_put_u8(out, 0);
	cursor_put_bytes(out, OEM_ID, 6);
	cursor_put_bytes(out, OEM_TABLE, 8);
	cursor_put_u32(out, OEM_REVISION);
	cursor_put_bytes(out, CREATOR, 4);
	cursor_put_u32(out, OEM_REVISION);
	return start;
}

/* Returns the guest address of the table. */
static gpa_t table_close(struct tables *tables, size_t start)
{
	uint8_t *data = tables->out.data + start;
	uint32_t size = tables->out.at - start;
	struct cursor length;

	if (tables->out.failed)
		return 0;
	length = cursor_writer(data + HEADER_LENGTH, sizeof(size));
	cursor_put_u32(&length, size);
	data[HEADER_CHECKSUM] = 0;
	data[HEADER_CHECKSUM] = checksum(data, size);
	return tables->gpa + start;
}

static gpa_t put_dsdt(struct tables *tables, const struct dsdt_board *board)
{
	size_t start = table_open(tables, "DSDT", 2);
	struct aml aml = aml_writer(tables->out.data + tables->out.at, cursor_left(&tables->out));

	dsdt_write(&aml, board);
	if (aml_status(&aml) < 0)
		tables->out.failed = true;
	else
		tables->out.at += aml.out.at;
	return table_close(tables, start);
}

/* Generic address structure of one port of one byte. */
static void put_port(struct cursor *out, uint16_t port)
{
	cursor_put_u8(out, SPACE_IO);
	cursor_put_u8(out, 8); /* bits */
	cursor_put_u8(out, 0);
	cursor_put_u8(out, ACCESS_BYTE);
	cursor_put_u64(out, port);
}

static gpa_t put_fadt(struct tables *tables, gpa_t dsdt)
{
	size_t start = table_open(tables, "FACP", 6);
	struct cursor *out = &tables->out;

	cursor_put_u32(out, 0); /* no FACS: nothing but S5 */
	cursor_put_u32(out, dsdt);
	cursor_put_u8(out, 0);
	cursor_put_u8(out, FADT_SERVER);
	put_zeroes(out, 96 - 46); /* SCI, SMI and the 32-bit register blocks */
	cursor_put_u16(out, FADT_NO_C2);
	cursor_put_u16(out, FADT_NO_C3);
	put_zeroes(out, 108 - 100);
	cursor_put_u8(out, RTC_CENTURY);
	cursor_put_u16(out, FADT_NO_VGA);
	cursor_put_u8(out, 0);
	cursor_put_u32(out, FADT_WBINVD | FADT_C1 | FADT_BUTTON | FADT_SLEEP | FADT_RTC |
				    FADT_RESET | FADT_REDUCED);
	put_port(out, POWER_PORT);
	cursor_put_u8(out, POWER_RESET_VALUE);
	cursor_put_u16(out, 0); /* ARM */
	cursor_put_u8(out, 4);  /* minor version: 6.4 */
	cursor_put_u64(out, 0);
	cursor_put_u64(out, dsdt);
	put_zeroes(out, 244 - 148); /* 64-bit register blocks */
	put_port(out, POWER_PORT);  /* sleep control */
	put_port(out, POWER_PORT);  /* sleep status */
	cursor_put_bytes(out, "CORRAL\0", 8);
	assert(out->failed || out->at - start == FADT_SIZE);
	return table_close(tables, start);
}

/* The APIC identifier is the vCPU's number, and so is its _UID. */
static void put_cpu(struct cursor *out, uint32_t cpu)
{
	if (cpu < MADT_LAPIC_IDS) {
		cursor_put_u8(out, MADT_LAPIC);
		cursor_put_u8(out, 8);
		cursor_put_u8(out, cpu);
		cursor_put_u8(out, cpu);
		cursor_put_u32(out, MADT_ENABLED);
		return;
	}
	cursor_put_u8(out, MADT_X2APIC);
	cursor_put_u8(out, 16);
	cursor_put_u16(out, 0);
	cursor_put_u32(out, cpu);
	cursor_put_u32(out, MADT_ENABLED);
	cursor_put_u32(out, cpu);
}

static gpa_t put_madt(struct tables *tables, uint32_t n_cpus)
{
	size_t start = table_open(tables, "APIC", 5);
	struct cursor *out = &tables->out;

	cursor_put_u32(out, LAYOUT_LAPIC);
	cursor_put_u32(out, 0); /* no 8259 */
	for (uint32_t i = 0; i < n_cpus; i++)
		put_cpu(out, i);
	cursor_put_u8(out, MADT_IOAPIC);
	cursor_put_u8(out, 12);
	cursor_put_u8(out, 0); /* its identifier */
	cursor_put_u8(out, 0);
	cursor_put_u32(out, LAYOUT_IOAPIC);
	cursor_put_u32(out, 0); /* its first GSI */
	return table_close(tables, start);
}

static gpa_t put_mcfg(struct tables *tables)
{
	size_t start = table_open(tables, "MCFG", 1);
	struct cursor *out = &tables->out;

	cursor_put_u64(out, 0);
	cursor_put_u64(out, LAYOUT_ECAM);
	cursor_put_u16(out, 0); /* segment */
	cursor_put_u8(out, 0);  /* first bus */
	cursor_put_u8(out, 0);  /* last bus */
	cursor_put_u32(out, 0);
	return table_close(tables, start);
}

static void put_rsdp(uint8_t *data, gpa_t xsdt)
{
	struct cursor out = cursor_writer(data, RSDP_SIZE);

	cursor_put_bytes(&out, "RSD PTR ", 8);
	cursor_put_u8(&out, 0); /* checksum */
	cursor_put_bytes(&out, OEM_ID, 6);
	cursor_put_u8(&out, 2);  /* revision */
	cursor_put_u32(&out, 0); /* no RSDT */
	cursor_put_u32(&out, RSDP_SIZE);
	cursor_put_u64(&out, xsdt);
	cursor_put_u32(&out, 0); /* extended checksum */
	data[8] = checksum(data, RSDP_FIRST_SIZE);
	data[32] = checksum(data, RSDP_SIZE);
}

int acpi_encode(const struct dsdt_board *board, gpa_t gpa, void *data, size_t size,
		size_t *ret_used)
{
	struct tables tables = {.out = cursor_writer(data, size), .gpa = gpa};
	gpa_t list[3], dsdt, xsdt;
	size_t start;
	int r;

	put_zeroes(&tables.out, RSDP_SIZE);
	dsdt = put_dsdt(&tables, board);
	list[0] = put_fadt(&tables, dsdt);
	list[1] = put_madt(&tables, board->n_cpus);
	list[2] = put_mcfg(&tables);
	start = table_open(&tables, "XSDT", 1);
	for (size_t i = 0; i < ARRAY_SIZE(list); i++)
		cursor_put_u64(&tables.out, list[i]);
	xsdt = table_close(&tables, start);
	r = cursor_status(&tables.out);
	if (r < 0)
		return r;
	put_rsdp(data, xsdt);
	*ret_used = tables.out.at;
	return 0;
}

int acpi_write(struct guest_memory *memory, uint32_t n_cpus, struct device *const *devices,
	       uint32_t n_devices, gpa_t *ret_rsdp, struct error *err)
{
	const size_t size = LAYOUT_ACPI_END - LAYOUT_ACPI;
	_cleanup_(freep) void *data = malloc(size);
	struct dsdt_board board = {
		.n_cpus = n_cpus,
		.memory_size = memory_total(memory),
		.devices = devices,
		.n_devices = n_devices,
	};
	size_t used;
	int r;

	if (!data)
		return error_set(err, -ENOMEM, "cannot make the ACPI tables: %s", strerror(ENOMEM));
	r = acpi_encode(&board, LAYOUT_ACPI, data, size, &used);
	if (r == 0)
		r = memory_write(memory, LAYOUT_ACPI, data, used);
	if (r < 0)
		return error_set(err, r, "cannot put the ACPI tables of %u vCPUs into memory: %s",
				 n_cpus, strerror(-r));
	*ret_rsdp = LAYOUT_ACPI;
	return 0;
}
