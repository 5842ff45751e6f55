struct key { long enabled, entries; } stats;
