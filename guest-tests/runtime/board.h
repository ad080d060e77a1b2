/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest test knows of Corral's board without asking ACPI. Everything that ACPI tells is read
 * from ACPI; this is the rest, and the one place to change when the board does.
 */
#pragma once

#define BOARD_SERIAL_PORT 0x3f8
#define BOARD_SERIAL_GSI  4

/* Hardware-reduced ACPI leaves it out of the FADT, and the board has it all the same. */
#define BOARD_PM_TIMER_PORT 0x608

#define BOARD_I8042_PORT    0x64
#define BOARD_I8042_RESET   0xfe

/* \_S5 would need an AML interpreter: 5 is what hardware-reduced boards name, 0 what QEMU's q35
 * does. */
#define BOARD_S5_SLP_TYP     5
#define BOARD_S5_SLP_TYP_PM1 0

/* Generic event device: an edge on the GSI; reading the port returns what happened and clears it.
 */
#define BOARD_GED_HID          "ACPI0013"
#define BOARD_POWER_BUTTON_HID "\x41\xd0\x0c\x0c" /* PNP0C0C, compressed */
#define BOARD_GED_GSI          9
#define BOARD_GED_PORT         0x610
#define BOARD_GED_POWER_BUTTON 0x01
#define BOARD_GED_PCI_HOTPLUG  0x08

/* Hot-plug of PCI slots: 32 bits each, a bit a slot; reading clears. */
#define BOARD_HOTPLUG_UP       0x620
#define BOARD_HOTPLUG_DOWN     0x624
#define BOARD_HOTPLUG_EJECT    0x628

#define BOARD_PVPANIC_PORT     0x505
#define BOARD_PVPANIC_PANICKED 0x01
