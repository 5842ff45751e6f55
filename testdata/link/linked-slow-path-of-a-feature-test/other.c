char caps[8];
