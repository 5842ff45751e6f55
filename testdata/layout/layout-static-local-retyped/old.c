int count(int x) { static int seen; if (x) { static char seen; seen++; } return seen++; }
