int remote;
