/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Platform devices in AML. Vendor prefix of what is our own: CRRL.
 */
#include "devices/describe.h"

#include <stdio.h>

#include "devices/aml.h"
#include "devices/ged.h"
#include "devices/generation.h"
#include "devices/pci-hotplug.h"
#include "devices/pci.h"
#include "devices/power.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/serial.h"

#define STATUS_WORKS      0x0f /* present, enabled, shown, functioning */
#define NOTIFY_BUTTON     0x80 /* pressed */
#define NOTIFY_GENERATION 0x80 /* changed */
#define NOTIFY_CHECK      1    /* something may have come */
#define NOTIFY_EJECT      3    /* it is asked to be given up */

#define SLOTS_SCAN        "\\_SB.PHPR.SCAN"

static void resources_port(struct aml *aml, uint16_t port, uint8_t size)
{
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_io(aml, port, size);
	aml_end(aml);
}

void serial_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "COM1");
	aml_name_eisa_id(aml, "_HID", "PNP0501");
	aml_name_integer(aml, "_UID", 1);
	aml_name_string(aml, "_DDN", "COM1");
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_io(aml, SERIAL_PORT, SERIAL_PORT_SIZE);
	aml_interrupt_edge(aml, SERIAL_GSI);
	aml_end(aml);
	aml_end(aml);
}

/* Without an interrupt: it tells the time and wakes nobody. */
void rtc_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "RTC0");
	aml_name_eisa_id(aml, "_HID", "PNP0B00");
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	resources_port(aml, RTC_PORT, 2);
	aml_end(aml);
}

void pvpanic_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "PEVT");
	aml_name_string(aml, "_HID", "QEMU0001"); /* the name that drivers know */
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	resources_port(aml, PVPANIC_PORT, 1);
	aml_end(aml);
}

/* The _CID is that of Microsoft's paper, then those that Linux compares with, letter by letter. */
void generation_describe(const struct device *device, struct aml *aml)
{
	const struct generation *generation = container_of(device, const struct generation, device);

	aml_device(aml, "VGEN");
	aml_name_string(aml, "_HID", "CRRL0001");
	aml_name(aml, "_CID");
	aml_package(aml, 3);
	aml_string(aml, "VM_Gen_Counter");
	aml_string(aml, "VM_GEN_COUNTER");
	aml_string(aml, "VMGENCTR");
	aml_end(aml);
	aml_name_string(aml, "_DDN", "VM_Gen_Counter");
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	aml_name(aml, "ADDR");
	aml_package(aml, 2);
	aml_integer(aml, generation->gpa & UINT32_MAX);
	aml_integer(aml, generation->gpa >> 32);
	aml_end(aml);
	aml_end(aml);
}

/* If (Local & bits) … up to aml_end */
static void if_bits(struct aml *aml, uint32_t local, uint32_t bits)
{
	aml_if(aml);
	aml_operator(aml, AML_AND);
	aml_local(aml, local);
	aml_integer(aml, bits);
	aml_nowhere(aml);
}

/* If (Local & bits) Notify (path, value) */
static void notify_if(struct aml *aml, uint32_t local, uint32_t bits, const char *path,
		      uint64_t value)
{
	if_bits(aml, local, bits);
	aml_notify(aml, path, value);
	aml_end(aml);
}

/* Reading the port clears it, so it is read once and looked at after. */
static void event_method(struct aml *aml)
{
	aml_method(aml, "_EVT", 1, true);
	aml_operator(aml, AML_STORE);
	aml_path(aml, "EVNT");
	aml_local(aml, 0);
	notify_if(aml, 0, GED_POWER_BUTTON, "\\_SB.PWRB", NOTIFY_BUTTON);
	notify_if(aml, 0, GED_GENERATION, "\\_SB.VGEN", NOTIFY_GENERATION);
	if_bits(aml, 0, GED_PCI_HOTPLUG);
	aml_path(aml, SLOTS_SCAN);
	aml_end(aml);
	aml_end(aml);
}

void ged_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "PWRB");
	aml_name_eisa_id(aml, "_HID", "PNP0C0C");
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	aml_end(aml);

	aml_device(aml, "GED0");
	aml_name_string(aml, "_HID", "ACPI0013");
	aml_name_integer(aml, "_UID", 0);
	aml_name_integer(aml, "_STA", STATUS_WORKS);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_interrupt_edge(aml, GED_GSI);
	aml_end(aml);
	aml_port_region(aml, "EVRG", GED_PORT, 1);
	aml_field(aml, "EVRG");
	aml_field_bits(aml, "EVNT", 8);
	aml_end(aml);
	event_method(aml);
	aml_end(aml);
}

/* A slot: its number, where it is, and a word to the register when the guest has let go of it. */
static void slot_describe(struct aml *aml, uint32_t slot)
{
	char name[8];

	snprintf(name, sizeof(name), "S%02X", slot & 0xff);
	aml_device(aml, name);
	aml_name_integer(aml, "_SUN", slot);
	aml_name_integer(aml, "_ADR", slot << 16);
	aml_method(aml, "_EJ0", 1, true);
	aml_operator(aml, AML_STORE);
	aml_integer(aml, UINT32_C(1) << slot);
	aml_path(aml, "\\_SB.PHPR.EJCT");
	aml_end(aml);
	aml_end(aml);
}

/* Reading the registers clears them, so they are read once and looked at after. */
static void scan_method(struct aml *aml)
{
	aml_method(aml, "SCAN", 0, true);
	aml_operator(aml, AML_STORE);
	aml_path(aml, "UPSL");
	aml_local(aml, 0);
	aml_operator(aml, AML_STORE);
	aml_path(aml, "DNSL");
	aml_local(aml, 1);
	for (uint32_t slot = 1; slot < PCI_SLOTS; slot++) {
		char path[24];

		snprintf(path, sizeof(path), "\\_SB.PCI0.S%02X", slot);
		notify_if(aml, 0, UINT32_C(1) << slot, path, NOTIFY_CHECK);
		notify_if(aml, 1, UINT32_C(1) << slot, path, NOTIFY_EJECT);
	}
	aml_end(aml);
}

/* No _STA in the slots: whether one is filled is seen in configuration space. */
void pci_hotplug_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "PHPR");
	aml_name_eisa_id(aml, "_HID", "PNP0C02");
	aml_name_integer(aml, "_UID", 2);
	resources_port(aml, PCI_HOTPLUG_PORT, PCI_HOTPLUG_PORT_SIZE);
	aml_port_region(aml, "SLRG", PCI_HOTPLUG_PORT, PCI_HOTPLUG_PORT_SIZE);
	aml_field32(aml, "SLRG");
	aml_field_bits(aml, "UPSL", 32);
	aml_field_bits(aml, "DNSL", 32);
	aml_field_bits(aml, "EJCT", 32);
	aml_end(aml);
	scan_method(aml);
	aml_end(aml);

	aml_scope(aml, "\\_SB.PCI0");
	for (uint32_t slot = 1; slot < PCI_SLOTS; slot++)
		slot_describe(aml, slot);
	aml_end(aml);
}

void power_describe(const struct device *device _unused_, struct aml *aml)
{
	aml_device(aml, "PWRM");
	aml_name_eisa_id(aml, "_HID", "PNP0C02");
	aml_name_integer(aml, "_UID", 1);
	aml_name(aml, "_CRS");
	aml_resources(aml);
	aml_io(aml, POWER_PORT, POWER_PORT_SIZE);
	aml_io(aml, PM_TIMER_PORT, PM_TIMER_PORT_SIZE);
	aml_end(aml);
	aml_end(aml);
}
