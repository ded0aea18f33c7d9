// A program that speaks the SPIFFE Workload API by the library of the SPIFFE
// project and knows nothing of ours:
//
//	spiffe-peer SOCKET
//
// Says its identity, the serial of its certificate and that one's end, and the
// same again when that has been replaced; between them, whom a token names by which
// it shows itself. A certificate or token that cannot be verified by what came with
// it is an error. It ends with 3 when it is refused.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	patience = 60 * time.Second
	refused  = 3
	audience = "bank"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	address := workloadapi.WithAddr("unix://" + os.Args[1])
	// The source asks again for ever; this says why not.
	if _, err := workloadapi.FetchX509Context(ctx, address); status.Code(err) == codes.PermissionDenied {
		fmt.Println("refused:", status.Convert(err).Message())
		_, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience}, address)
		if status.Code(err) != codes.PermissionDenied {
			log.Fatal("refused, but for tokens: ", err)
		}
		os.Exit(refused)
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	first := tell(source)
	show(ctx, address)
	for {
		select {
		case <-source.Updated():
		case <-ctx.Done():
			log.Fatal("it was not replaced: ", ctx.Err())
		}
		svid, err := source.GetX509SVID()
		if err != nil {
			log.Fatal(err)
		}
		if svid.Certificates[0].SerialNumber.String() != first {
			tell(source)
			return
		}
	}
}

// tell says what there is now, and returns the serial.
func tell(source *workloadapi.X509Source) string {
	svid, err := source.GetX509SVID()
	if err != nil {
		log.Fatal(err)
	}
	id, _, err := x509svid.Verify(svid.Certificates, source)
	if err != nil {
		log.Fatal("not by its own bundle: ", err)
	}
	if id != svid.ID {
		log.Fatal("another identity: ", id)
	}
	leaf := svid.Certificates[0]
	fmt.Println(id, leaf.SerialNumber, leaf.NotAfter.UTC().Format(time.RFC3339))
	return leaf.SerialNumber.String()
}

// show says whom a token names, once its keys and the agent have verified it.
func show(ctx context.Context, address workloadapi.ClientOption) {
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(address))
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		log.Fatal(err)
	}
	token := svid.Marshal()
	if _, err := jwtsvid.ParseAndValidate(token, source, []string{audience}); err != nil {
		log.Fatal("not by the keys that are told: ", err)
	}
	client, err := workloadapi.New(ctx, address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	said, err := client.ValidateJWTSVID(ctx, token, audience)
	if err != nil || said.ID != svid.ID {
		log.Fatal("not by the agent: ", said, err)
	}
	if _, err := client.ValidateJWTSVID(ctx, token, "post"); status.Code(err) != codes.InvalidArgument {
		log.Fatal("good for somebody else, too: ", err)
	}
	fmt.Println("token", svid.ID, svid.Expiry.UTC().Format(time.RFC3339))
}
