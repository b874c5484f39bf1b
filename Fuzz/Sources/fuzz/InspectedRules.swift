/// Rules of every kind that the engine has, for targets that need some.
let fuzzRules = """
  alert tcp any any -> any 80 (msg:"content"; content:"GET "; depth:8; content:"passwd"; nocase; distance:1; within:64; sid:1;)
  alert tcp any any -> any any (msg:"negated"; content:"hello"; content:!"world"; distance:0; sid:2;)
  alert udp any any -> any 53 (msg:"size"; dsize:4<>64; content:"|00 01|"; offset:2; sid:3;)
  alert icmp any any -> any any (msg:"echo"; itype:8; icode:0; sid:4;)
  alert tcp any any -> any any (msg:"scan"; flags:S,CE; threshold:type both, track by_src, count 3, seconds 60; sid:5;)
  alert tcp any any <> any any (msg:"flow"; flow:established,to_server; content:"USER"; nocase; sid:6;)
  drop tcp [10.0.0.0/8,!10.1.0.0/16] ![80,443] -> 192.0.2.0/24 1:1024 (msg:"lists"; content:"x"; sid:7;)
  alert ip any any -> any any (msg:"ip"; content:"|ff fe|"; sid:8;)
  pass tcp any any -> any 22 (msg:"pass"; content:"SSH-"; depth:4; sid:9;)

  alert ip any any -> any any (msg:"numbers"; content:"a"; byte_extract:1,0,n,relative; byte_jump:1,n,relative,multiplier 3; byte_test:2,>,n,0,string,dec; content:"b"; within:n; sid:90;)
  alert ip any any -> any any (msg:"regex"; content:"a"; pcre:"/^(x|y)+z?/Ri"; content:!"q"; within:3; sid:91;)
  alert ip any any -> any any (msg:"base64"; base64_decode:bytes 40,offset 1; base64_data; content:"u"; isdataat:!4,relative; sid:92;)
  alert ip any any -> any any (msg:"formats"; asn1:oversize_length 100,relative_offset 1; rpc:100000,*,*; cvs:invalid-entry; sid:93;)
  alert ip any any -> any any (msg:"digest"; protected_content:"900150983cd24fb0d6963f7d28e17f72"; hash:md5; length:3; sd_pattern:1,us_social; sid:94;)
  alert ip any any -> any any (msg:"run"; content:"AAAAAAAAAAAA"; tag:session,3,packets; sid:95;)
  alert ip any any -> any any (msg:"shorter run"; content:"|00 00 00 00 00 00 00 00|"; tag:host,400,bytes,src; sid:96;)
  """

/// Rules of kinds that only Suricata's dialect has.
let fuzzSuricataRules = """
  alert ip any any -> any any (msg:"captures"; pcre:"/([a-z]+).(?:(.)x)?/", flow:word, pkt:letter; sid:200;)
  alert ip any any -> any any (msg:"flowvar"; flowvar:word,"ab"; pktvar:letter,!"c"; sid:201;)
  """
