/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The platform devices in their own words: for `describe` of their device_ops. Names and
 * identifiers are migration ABI: a guest reads them once and never again. Called inside \_SB.
 */
#pragma once

struct aml;
struct device;

void serial_describe(const struct device *device, struct aml *aml);
void rtc_describe(const struct device *device, struct aml *aml);
void pvpanic_describe(const struct device *device, struct aml *aml);
/* Where the generation id is; told by the generic event device when it changes. */
void generation_describe(const struct device *device, struct aml *aml);
/* The generic event device, and the power button that it tells about. */
void ged_describe(const struct device *device, struct aml *aml);
/* A device for each PCI slot, and what the generic event device calls. After the PCI root. */
void pci_hotplug_describe(const struct device *device, struct aml *aml);
/* Ports that only the FADT and firmware name. */
void power_describe(const struct device *device, struct aml *aml);
