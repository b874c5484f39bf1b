#include <netinet/in.h>
#include <pcap/pcap.h>
