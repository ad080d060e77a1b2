/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of the DSDT belongs to no single device of the board "corral-1".
 */
#include "vmm/x86/dsdt.h"

#include <stdio.h>

#include "devices/aml.h"
#include "devices/device.h"
#include "devices/power.h"
#include "vmm/x86/layout.h"

#define STATUS_WORKS      0x0f /* present, enabled, shown, functioning */
#define PCI_ADDRESS_PORTS 8    /* CF8 and CFC */

/* \_S5: what to write to the sleep control register to power off. */
static void put_sleep(struct aml *aml)
{
	aml_name(aml, "_S5");
	aml_package(aml, 4);
	aml_integer(aml, POWER_SLEEP_TYPE_S5);
	aml_integer(aml, 0);
	aml_integer(aml, 0);
	aml_integer(aml, 0);
	aml_end(aml);
}

/* _UID is what ties a processor to its entry in the MADT. */
static void put_cpus(struct aml *aml, uint32_t n_cpus)
{
	for (uint32_t i = 0; i < n_cpus; i++) {
		char name[5];

		snprintf(name, sizeof(name), "C%03X", i & 0xfff);
		aml_device(aml, name);
		aml_name_string(aml, "_HID", "ACPI0007");
		aml_name_integer(aml, "_UID", i);
		aml_name_integer(aml, "_STA", STATUS_WORKS);
		aml_end(aml);
	}
}

/* No _PRT: there are no interrupt lines, only MSI-X. */
static void put_pci_root(struct aml *aml, uint64_t memory_size)
{
	struct memory_range high = layout_pci64(memory_size);

	aml_device(aml, "PCI0");
	aml_name_eisa_id(aml, "_HID", "PNP0A08");
	aml_name_eisa_id(aml, "_CID", "PNP0A03");
	aml_name_integer(aml, "_UID", 0);
	aml_name_integer(aml, "_SEG", 0);
	aml_name_integer(aml, "_BBN", 0);
	aml_name_integer(aml, "_CBA", LAYOUT_ECAM);
	aml_name_integer(aml, "_CCA", 1);
	/* Everything the operating system asks to control it may: nobody else does. */
	aml_method(aml, "_OSC", 4, false);
	aml_operator(aml, AML_RETURN);
	aml_arg(aml, 3);
	aml_end(aml);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_bus_window(aml, 0, 0);
	aml_io(aml, LAYOUT_PORT_PCI, PCI_ADDRESS_PORTS);
	aml_io_window(aml, LAYOUT_PORT_PCI_BAR, 0xffff);
	aml_memory32_window(aml, LAYOUT_PCI32, LAYOUT_PCI32_END - 1);
	aml_memory64_window(aml, high.start, high.start + high.size - 1);
	aml_end(aml);
	aml_end(aml);
}

/* Configuration space is no device's to take. */
static void put_ecam(struct aml *aml)
{
	aml_device(aml, "ECAM");
	aml_name_eisa_id(aml, "_HID", "PNP0C02");
	aml_name_integer(aml, "_UID", 0);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_memory32(aml, LAYOUT_ECAM, LAYOUT_ECAM_SIZE);
	aml_end(aml);
	aml_end(aml);
}

void dsdt_write(struct aml *aml, const struct dsdt_board *board)
{
	put_sleep(aml);
	aml_scope(aml, "\\_SB");
	put_cpus(aml, board->n_cpus);
	put_pci_root(aml, board->memory_size);
	put_ecam(aml);
	for (uint32_t i = 0; i < board->n_devices; i++) {
		const struct device *device = board->devices[i];

		if (device->ops->describe)
			device->ops->describe(device, aml);
	}
	aml_end(aml);
}
