/// Rules of every kind that the engine has, for targets that need some.
public let fuzzRules = """
  alert tcp any any -> any 80 (msg:"content"; content:"GET "; depth:8; content:"passwd"; nocase; distance:1; within:64; sid:1;)
  alert tcp any any -> any any (msg:"negated"; content:"hello"; content:!"world"; distance:0; sid:2;)
  alert udp any any -> any 53 (msg:"size"; dsize:4<>64; content:"|00 01|"; offset:2; sid:3;)
  alert icmp any any -> any any (msg:"echo"; itype:8; icode:0; sid:4;)
  alert tcp any any -> any any (msg:"scan"; flags:S,CE; threshold:type both, track by_src, count 3, seconds 60; sid:5;)
  alert tcp any any <> any any (msg:"flow"; flow:established,to_server; content:"USER"; nocase; sid:6;)
  drop tcp [10.0.0.0/8,!10.1.0.0/16] ![80,443] -> 192.0.2.0/24 1:1024 (msg:"lists"; content:"x"; sid:7;)
  alert ip any any -> any any (msg:"ip"; content:"|ff fe|"; sid:8;)
  pass tcp any any -> any 22 (msg:"pass"; content:"SSH-"; depth:4; sid:9;)

  """
