# Verifies mail with Mail::DKIM. Arguments: the resolver's address and port.
#
# On standard input comes mail after mail, each after a line with its length; for
# each, a line of JSON goes out: a list of domain, selector, pass and detail.

use strict;
use warnings;

use JSON::PP;
use Mail::DKIM::DNS;
use Mail::DKIM::Verifier;
use Net::DNS::Resolver;

my ( $host, $port ) = @ARGV;
Mail::DKIM::DNS::resolver(
    Net::DNS::Resolver->new( nameservers => [$host], port => $port, udppacketsize => 4096 ) );
my $json = JSON::PP->new->canonical;
binmode STDIN;
$| = 1;
while ( my $line = <STDIN> ) {
    my $left    = int $line;
    my $message = '';
    while ( $left > 0 ) {
        my $n = read STDIN, $message, $left, length $message;
        exit 1 unless $n;
        $left -= $n;
    }
    my $verifier = Mail::DKIM::Verifier->new;
    $verifier->PRINT($message);
    $verifier->CLOSE;
    my @results = map {
        {
            domain   => $_->domain,
            selector => $_->selector,
            pass     => $_->result eq 'pass' ? JSON::PP::true : JSON::PP::false,
            detail   => $_->result_detail,
        }
    } $verifier->signatures;
    print $json->encode( \@results ), "\n";
}
