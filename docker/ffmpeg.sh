#!/bin/sh
# Installs FFmpeg's libraries and headers in a stage of an image's build: ffmpeg.sh trimmed|distribution
#
# trimmed: from the distribution's source package, with its patches, what the server reads and nothing else: no network, no
# protocols, no encoders, no programs, and no parts under the GPL. Goes to /usr/local. What the LGPL wants to be told is in
# /usr/local/share/doc/ffmpeg.
# distribution: the distribution's packages.
set -eu
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -y -qq --no-install-recommends"

if [ "$1" = distribution ]; then
    apt-get update -qq
    $install libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
    exit 0
fi
[ "$1" = trimmed ] || { echo "FFMPEG is trimmed or distribution, not $1" >&2; exit 1; }

# src/video/ffmpeg.rs opens these.
demuxers=mov,matroska,avi,mpegts,mpegps,mpegvideo,h264,hevc,m4v,h263,obu,av1,ivf,flv,live_flv,asf,asf_o,ogg,mxf,nut,dv,rm,wtv
demuxers=$demuxers,gxf,vc1,yuv4mpegpipe,gif,apng
# It never opens these, but tells what it refused.
demuxers=$demuxers,hls,concat,image2,image_bmp_pipe,image_jpeg_pipe,image_png_pipe,image_tiff_pipe,image_webp_pipe
demuxers=$demuxers,aac,ac3,flac,mp3,wav

# What these containers hold where videos come from: phones, the web, broadcasts, cameras, editors, screens, and data sets
# of old files.
decoders=h264,hevc,libdav1d,vp8,vp9,mpeg1video,mpeg2video,mpegvideo,mpeg4,mjpeg
decoders=$decoders,h261,h263,h263i,h263p,flv,vp3,vp4,vp5,vp6,vp6a,vp6f,vp7,theora,dirac
decoders=$decoders,msmpeg4v1,msmpeg4v2,msmpeg4v3,wmv1,wmv2,wmv3,vc1,mss2,rv10,rv20,rv30,rv40,svq1,svq3
decoders=$decoders,cinepak,indeo2,indeo3,indeo4,indeo5,msrle,msvideo1,qtrle,rpza,smc,gif,apng,png
decoders=$decoders,dvvideo,prores,dnxhd,cfhd,hap,jpeg2000,mjpegb,ffv1,ffvhuff,huffyuv,utvideo,magicyuv,lagarith
decoders=$decoders,rawvideo,v210,v308,v408,v410,r210,yuv4,flashsv,flashsv2,tscc,tscc2,zmbv,fraps

# Those of sound as well: streams are told apart by them.
parsers=h264,hevc,av1,vp3,vp8,vp9,mpegvideo,mpeg4video,vc1,h261,h263,mjpeg,rv30,rv40,dirac,dnxhd,jpeg2000,gif,png
parsers=$parsers,aac,aac_latm,ac3,dca,flac,mpegaudio,opus,vorbis

# Sources of the distribution itself; other vendors' lists stay as they are.
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
    [ ! -f $list ] || sed -i 's/^Types: deb$/Types: deb deb-src/' $list
done
[ ! -f /etc/apt/sources.list ] || sed -i -n 'p; s/^deb /deb-src /p' /etc/apt/sources.list
apt-get update -qq
$install dpkg-dev gcc libc6-dev make nasm pkg-config libdav1d-dev zlib1g-dev

work=$(mktemp -d)
cd "$work"
apt-get source -qq ffmpeg
cd ffmpeg-*/
# Optimisation and hardening as the distribution's packages have them.
./configure --prefix=/usr/local --enable-shared --disable-static --disable-debug \
    --extra-version="$(dpkg-parsechangelog -S Version | sed 's/.*-//')-trimmed" --toolchain=hardened \
    --extra-cflags="$(dpkg-buildflags --get CPPFLAGS) $(dpkg-buildflags --get CFLAGS)" \
    --extra-ldflags="$(dpkg-buildflags --get LDFLAGS)" \
    --disable-everything --disable-autodetect --disable-network --disable-programs --disable-doc --disable-avdevice \
    --disable-avfilter --disable-postproc --disable-swresample --enable-libdav1d --enable-zlib \
    --enable-demuxer=$demuxers --enable-decoder=$decoders --enable-parser=$parsers \
    --enable-bsf=extract_extradata,vp9_superframe_split
# Misspelt components are passed over by FFmpeg's configure.
for component in $(echo $demuxers | sed 's/,\|$/_demuxer /g') $(echo $decoders | sed 's/,\|$/_decoder /g') \
    $(echo $parsers | sed 's/,\|$/_parser /g'); do
    macro=CONFIG_$(echo "$component" | tr a-z A-Z)
    grep -qx "#define $macro 1" config_components.h config.h 2>/dev/null || grep -qx "$macro=yes" ffbuild/config.mak ||
        { echo "FFmpeg has no $component, or it lacks something" >&2; exit 1; }
done
grep -q '"LGPL version 2.1 or later"' config.h
make -s -j "$(nproc)"
make -s install
rm -r /usr/local/share/ffmpeg
ldconfig

doc=/usr/local/share/doc/ffmpeg
mkdir -p $doc
cp COPYING.LGPLv2.1 LICENSE.md $doc/
cp debian/copyright $doc/copyright
dpkg-parsechangelog -S Version >$doc/version
cat >$doc/README <<END
libavcodec, libavformat, libavutil and libswscale in /usr/local/lib are FFmpeg's, under the LGPL version 2.1 or later.
Source: $(. /etc/os-release; echo "$NAME $VERSION_ID"), source package ffmpeg $(cat $doc/version), with its patches (apt-get source ffmpeg=$(cat $doc/version)).
Built on $(dpkg --print-architecture) with $(gcc --version | head -n 1) by:
$(sed -n 's/^# //p' ffbuild/config.log | grep configure | head -n 1)
make && make install
They can be exchanged for other builds of the same versions.
END
cd /
rm -rf "$work"
