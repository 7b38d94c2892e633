"""Full names of the services that the client calls."""

GATEWAY = "llamesh.v1.GatewayService"
CONTRACT = "llamesh.v1.ContractService"
DOWNLOAD = "llamesh.v1.DownloadService"
QUANT = "llamesh.v1.QuantService"
