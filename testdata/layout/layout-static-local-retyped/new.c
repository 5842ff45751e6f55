int count(int x) { static long seen; if (x) { static char seen; seen++; } return seen++; }
